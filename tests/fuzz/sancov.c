/* Receives what code built with -fsanitize=fuzzer-no-link reports: how often each edge was taken.
 * The fuzzer loads this library before the instrumented modules and asks it after every input for new edges. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define MAX_MODULES 64
#define EXPORT __attribute__((visibility("default")))

static struct { uint8_t *start, *stop; } modules[MAX_MODULES];
static size_t num_modules;
static uint8_t seen[1 << 22];

EXPORT void __sanitizer_cov_8bit_counters_init(uint8_t *start, uint8_t *stop) {
    for (size_t i = 0; i < num_modules; i++) {
        if (modules[i].start == start) return;
    }
    if (num_modules < MAX_MODULES && start != stop) {
        modules[num_modules].start = start;
        modules[num_modules++].stop = stop;
    }
}

EXPORT size_t edges_total(void) {
    size_t total = 0;
    for (size_t i = 0; i < num_modules; i++) total += (size_t)(modules[i].stop - modules[i].start);
    return total;
}

/* Buckets of counts as libFuzzer has them: 1, 2, 3, 4-7, 8-15, 16-31, 32-127, 128 and more. */
static uint8_t bucket(uint8_t count) {
    if (count >= 128) return 128;
    if (count >= 32) return 64;
    if (count >= 16) return 32;
    if (count >= 8) return 16;
    if (count >= 4) return 8;
    return count == 3 ? 4 : count;
}

/* Count what the last input reached for the first time (edges or count buckets), and clear the counters. */
EXPORT size_t take_new(void) {
    size_t found = 0, at = 0;
    for (size_t i = 0; i < num_modules; i++) {
        for (uint8_t *c = modules[i].start; c < modules[i].stop && at < sizeof seen; c++, at++) {
            if (*c && (seen[at] & bucket(*c)) == 0) {
                seen[at] |= bucket(*c);
                found++;
            }
        }
        memset(modules[i].start, 0, (size_t)(modules[i].stop - modules[i].start));
    }
    return found;
}

EXPORT size_t edges_seen(void) {
    size_t found = 0, total = edges_total();
    for (size_t i = 0; i < total && i < sizeof seen; i++) found += seen[i] != 0;
    return found;
}

/* The comparisons are reported too; counts of edges are enough here. */
EXPORT void __sanitizer_cov_pcs_init(const uintptr_t *start, const uintptr_t *stop) { (void)start; (void)stop; }
EXPORT void __sanitizer_cov_trace_pc_indir(uintptr_t callee) { (void)callee; }
EXPORT void __sanitizer_cov_trace_cmp1(uint8_t a, uint8_t b) { (void)a; (void)b; }
EXPORT void __sanitizer_cov_trace_cmp2(uint16_t a, uint16_t b) { (void)a; (void)b; }
EXPORT void __sanitizer_cov_trace_cmp4(uint32_t a, uint32_t b) { (void)a; (void)b; }
EXPORT void __sanitizer_cov_trace_cmp8(uint64_t a, uint64_t b) { (void)a; (void)b; }
EXPORT void __sanitizer_cov_trace_const_cmp1(uint8_t a, uint8_t b) { (void)a; (void)b; }
EXPORT void __sanitizer_cov_trace_const_cmp2(uint16_t a, uint16_t b) { (void)a; (void)b; }
EXPORT void __sanitizer_cov_trace_const_cmp4(uint32_t a, uint32_t b) { (void)a; (void)b; }
EXPORT void __sanitizer_cov_trace_const_cmp8(uint64_t a, uint64_t b) { (void)a; (void)b; }
EXPORT void __sanitizer_cov_trace_div4(uint32_t value) { (void)value; }
EXPORT void __sanitizer_cov_trace_div8(uint64_t value) { (void)value; }
EXPORT void __sanitizer_cov_trace_gep(uintptr_t index) { (void)index; }
EXPORT void __sanitizer_cov_trace_switch(uint64_t value, uint64_t *cases) { (void)value; (void)cases; }
EXPORT __thread uintptr_t __sancov_lowest_stack;
