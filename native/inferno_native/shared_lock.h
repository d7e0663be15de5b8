/* A lock in shared memory that a killed process cannot leave locked.
 *
 * Linux: a process-shared robust pthread mutex; the kernel marks it when its owner dies (man pthread_mutexattr_setrobust).
 * macOS has no robust mutexes: a word holding the owner's process id; a waiter that finds the owner gone takes it over.
 * There the id of a dead owner could be taken by a new process before a waiter looks; the wait then ends in a timeout,
 * which callers treat as a failed store. inferno_lock_acquire tells when it recovered the lock, so that the caller can
 * bring the data behind it into order first.
 */
#ifndef INFERNO_SHARED_LOCK_H
#define INFERNO_SHARED_LOCK_H

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { INFERNO_LOCK_TAKEN = 0, INFERNO_LOCK_RECOVERED = 1, INFERNO_LOCK_BUSY = -1, INFERNO_LOCK_FAILED = -2 };

#if defined(__x86_64__) || defined(__i386__)
#define INFERNO_PAUSE() __builtin_ia32_pause()
#else
#define INFERNO_PAUSE() ((void)0)
#endif

#if defined(__linux__)

typedef struct {
    pthread_mutex_t mutex;
} inferno_lock;

static inline int inferno_lock_init(inferno_lock *lock) {
    pthread_mutexattr_t attributes;
    if (pthread_mutexattr_init(&attributes) != 0) return INFERNO_LOCK_FAILED;
    int failed = pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED)
              || pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST)
              || pthread_mutex_init(&lock->mutex, &attributes);
    pthread_mutexattr_destroy(&attributes);
    return failed ? INFERNO_LOCK_FAILED : INFERNO_LOCK_TAKEN;
}

static inline int inferno_lock_result(inferno_lock *lock, int error) {
    if (error == 0) return INFERNO_LOCK_TAKEN;
    if (error == EOWNERDEAD) {
        return pthread_mutex_consistent(&lock->mutex) == 0 ? INFERNO_LOCK_RECOVERED : INFERNO_LOCK_FAILED;
    }
    return (error == EBUSY || error == ETIMEDOUT) ? INFERNO_LOCK_BUSY : INFERNO_LOCK_FAILED;
}

static inline int inferno_lock_try(inferno_lock *lock) {
    return inferno_lock_result(lock, pthread_mutex_trylock(&lock->mutex));
}

/* Waits at most `milliseconds`: a holder that is stopped (not dead) must not stop everybody for ever. */
static inline int inferno_lock_wait(inferno_lock *lock, long milliseconds) {
    for (int i = 0; i < 200; i++) {
        int result = inferno_lock_try(lock);
        if (result != INFERNO_LOCK_BUSY) return result;
        INFERNO_PAUSE();
    }
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += milliseconds / 1000;
    deadline.tv_nsec += (milliseconds % 1000) * 1000000L;
    if (deadline.tv_nsec >= 1000000000L) { deadline.tv_sec += 1; deadline.tv_nsec -= 1000000000L; }
    return inferno_lock_result(lock, pthread_mutex_timedlock(&lock->mutex, &deadline));
}

static inline void inferno_lock_release(inferno_lock *lock) { pthread_mutex_unlock(&lock->mutex); }

#else

typedef struct {
    int32_t owner;
    char padding[60];
} inferno_lock;

static inline int inferno_lock_init(inferno_lock *lock) {
    __atomic_store_n(&lock->owner, 0, __ATOMIC_SEQ_CST);
    return INFERNO_LOCK_TAKEN;
}

static inline int inferno_lock_try(inferno_lock *lock) {
    int32_t expected = 0;
    return __atomic_compare_exchange_n(&lock->owner, &expected, (int32_t)getpid(), 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)
        ? INFERNO_LOCK_TAKEN : INFERNO_LOCK_BUSY;
}

static inline int inferno_lock_wait(inferno_lock *lock, long milliseconds) {
    for (long i = 0; i < milliseconds * 20; i++) {
        for (int spin = 0; spin < 100; spin++) {
            if (inferno_lock_try(lock) == INFERNO_LOCK_TAKEN) return INFERNO_LOCK_TAKEN;
        }
        int32_t owner = __atomic_load_n(&lock->owner, __ATOMIC_RELAXED);
        if (owner != 0 && kill(owner, 0) != 0 && errno == ESRCH
            && __atomic_compare_exchange_n(&lock->owner, &owner, (int32_t)getpid(), 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
            return INFERNO_LOCK_RECOVERED;
        }
        struct timespec pause = {0, 50000};
        nanosleep(&pause, NULL);
    }
    return INFERNO_LOCK_BUSY;
}

static inline void inferno_lock_release(inferno_lock *lock) { __atomic_store_n(&lock->owner, 0, __ATOMIC_RELEASE); }

#endif

/* Keeps the compiler from moving stores across: a process is killed between two instructions, and what it stored before
 * is then seen by all, so that program order is the only order that a journal needs. */
#define INFERNO_COMPILER_BARRIER() __atomic_signal_fence(__ATOMIC_SEQ_CST)

static inline uint64_t inferno_monotonic_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

/* Debug builds can stop the process at a numbered point of the critical section, for a test to kill it there. */
#ifdef INFERNO_DEBUG
enum { INFERNO_DEBUG_BUILD = 1 };
static int inferno_stop_point = 0;
#define INFERNO_POINT(number) do { if (inferno_stop_point == (number)) { inferno_stop_point = 0; raise(SIGSTOP); } } while (0)
#else
enum { INFERNO_DEBUG_BUILD = 0 };
static int inferno_stop_point __attribute__((unused)) = 0;
#define INFERNO_POINT(number) ((void)0)
#endif

#endif
