/* The part of llama.h that Inferno calls: its structs, and one table of typed function pointers.
 *
 * The structs mirror llama.cpp 0.5.0 (commit 0c1e570); llama.pyx checks each field's offset and size against the
 * loaded package before the first call. The table is filled at run time, by name, from the library that llama_cpp
 * loads: nothing here links against it. `inferno_guard` keeps C++ exceptions on this side of the language border.
 */
#ifndef INFERNO_LLAMA_ABI_H
#define INFERNO_LLAMA_ABI_H

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <mutex>

extern "C" {

struct llama_vocab;
struct llama_model;
struct llama_context;
struct llama_sampler;
struct llama_memory_i;
struct ggml_backend_device;

typedef int32_t llama_token;
typedef int32_t llama_pos;
typedef int32_t llama_seq_id;

typedef bool (*inferno_progress_fn)(float fraction, void *user_data);
typedef bool (*inferno_abort_fn)(void *user_data);
typedef void (*inferno_log_fn)(int level, const char *text, void *user_data);

struct llama_token_data {
    llama_token id;
    float logit;
    float p;
};

struct llama_token_data_array {
    llama_token_data *data;
    size_t size;
    int64_t selected;  /* index into data, -1 before a choice */
    bool sorted;
};

struct llama_batch {
    int32_t n_tokens;
    llama_token *token;
    float *embd;
    llama_pos *pos;
    int32_t *n_seq_id;
    llama_seq_id **seq_id;
    int8_t *logits;
};

struct llama_model_params {
    void *devices;
    const void *tensor_buft_overrides;
    int32_t n_gpu_layers;
    int32_t split_mode;
    int32_t load_mode;
    int32_t lazy_mode;
    int32_t main_gpu;
    const float *tensor_split;
    inferno_progress_fn progress_callback;
    void *progress_callback_user_data;
    const void *kv_overrides;
    bool vocab_only;
    bool check_tensors;
    bool use_extra_bufts;
    bool no_host;
    bool no_alloc;
    bool load_mtp;
};

struct llama_context_params {
    uint32_t n_ctx;
    uint32_t n_batch;
    uint32_t n_ubatch;
    uint32_t n_seq_max;
    uint32_t n_rs_seq;
    uint32_t n_outputs_max;
    uint32_t n_outputs_max_per_seq;
    int32_t n_threads;
    int32_t n_threads_batch;
    int32_t ctx_type;
    int32_t rope_scaling_type;
    int32_t pooling_type;
    int32_t attention_type;
    int32_t flash_attn_type;
    float rope_freq_base;
    float rope_freq_scale;
    float yarn_ext_factor;
    float yarn_attn_factor;
    float yarn_beta_fast;
    float yarn_beta_slow;
    uint32_t yarn_orig_ctx;
    float defrag_thold;
    void *cb_eval;
    void *cb_eval_user_data;
    int32_t type_k;
    int32_t type_v;
    inferno_abort_fn abort_callback;
    void *abort_callback_data;
    bool embeddings;
    bool offload_kqv;
    bool no_perf;
    bool op_offload;
    bool swa_full;
    bool kv_unified;
    void *samplers;
    size_t n_samplers;
    llama_context *ctx_other;
};

struct llama_sampler_chain_params {
    bool no_perf;
};

struct llama_logit_bias {
    llama_token token;
    float bias;
};

}  // extern "C"

/* F(result, name, parameters): every function of the library that we call. */
#define INFERNO_LLAMA_FUNCTIONS(F) \
    F(const char *, llama_version, (void)) \
    F(void, llama_backend_init, (void)) \
    F(void, llama_log_set, (inferno_log_fn, void *)) \
    F(const char *, llama_print_system_info, (void)) \
    F(bool, llama_supports_gpu_offload, (void)) \
    F(size_t, llama_max_parallel_sequences, (void)) \
    F(llama_model_params, llama_model_default_params, (void)) \
    F(llama_context_params, llama_context_default_params, (void)) \
    F(llama_sampler_chain_params, llama_sampler_chain_default_params, (void)) \
    F(llama_model *, llama_model_load_from_file_ptr, (FILE *, llama_model_params)) \
    F(llama_model *, llama_model_load_from_splits, (const char **, size_t, llama_model_params)) \
    F(void, llama_model_free, (llama_model *)) \
    F(const llama_vocab *, llama_model_get_vocab, (const llama_model *)) \
    F(int32_t, llama_model_n_ctx_train, (const llama_model *)) \
    F(int32_t, llama_model_n_embd, (const llama_model *)) \
    F(int32_t, llama_model_n_layer, (const llama_model *)) \
    F(int32_t, llama_model_n_head, (const llama_model *)) \
    F(int32_t, llama_model_n_head_kv, (const llama_model *)) \
    F(int32_t, llama_model_n_swa, (const llama_model *)) \
    F(int32_t, llama_model_desc, (const llama_model *, char *, size_t)) \
    F(int32_t, llama_model_ftype, (const llama_model *)) \
    F(const char *, llama_ftype_name, (int32_t)) \
    F(uint64_t, llama_model_size, (const llama_model *)) \
    F(uint64_t, llama_model_n_params, (const llama_model *)) \
    F(const char *, llama_model_chat_template, (const llama_model *, const char *)) \
    F(bool, llama_model_has_encoder, (const llama_model *)) \
    F(bool, llama_model_has_decoder, (const llama_model *)) \
    F(bool, llama_model_is_recurrent, (const llama_model *)) \
    F(bool, llama_model_is_hybrid, (const llama_model *)) \
    F(bool, llama_model_is_diffusion, (const llama_model *)) \
    F(int32_t, llama_model_meta_count, (const llama_model *)) \
    F(int32_t, llama_model_meta_val_str, (const llama_model *, const char *, char *, size_t)) \
    F(int32_t, llama_model_meta_key_by_index, (const llama_model *, int32_t, char *, size_t)) \
    F(int32_t, llama_vocab_n_tokens, (const llama_vocab *)) \
    F(int32_t, llama_vocab_type, (const llama_vocab *)) \
    F(const char *, llama_vocab_get_text, (const llama_vocab *, llama_token)) \
    F(float, llama_vocab_get_score, (const llama_vocab *, llama_token)) \
    F(int32_t, llama_vocab_get_attr, (const llama_vocab *, llama_token)) \
    F(bool, llama_vocab_is_eog, (const llama_vocab *, llama_token)) \
    F(bool, llama_vocab_is_control, (const llama_vocab *, llama_token)) \
    F(llama_token, llama_vocab_bos, (const llama_vocab *)) \
    F(llama_token, llama_vocab_eos, (const llama_vocab *)) \
    F(llama_token, llama_vocab_eot, (const llama_vocab *)) \
    F(llama_token, llama_vocab_sep, (const llama_vocab *)) \
    F(llama_token, llama_vocab_nl, (const llama_vocab *)) \
    F(llama_token, llama_vocab_pad, (const llama_vocab *)) \
    F(bool, llama_vocab_get_add_bos, (const llama_vocab *)) \
    F(bool, llama_vocab_get_add_eos, (const llama_vocab *)) \
    F(const llama_token *, llama_vocab_get_suppress_tokens, (const llama_vocab *, int32_t *)) \
    F(int32_t, llama_tokenize, (const llama_vocab *, const char *, int32_t, llama_token *, int32_t, bool, bool)) \
    F(int32_t, llama_token_to_piece, (const llama_vocab *, llama_token, char *, int32_t, int32_t, bool)) \
    F(int32_t, llama_detokenize, (const llama_vocab *, const llama_token *, int32_t, char *, int32_t, bool, bool)) \
    F(llama_context *, llama_init_from_model, (llama_model *, llama_context_params)) \
    F(void, llama_free, (llama_context *)) \
    F(llama_memory_i *, llama_get_memory, (const llama_context *)) \
    F(uint32_t, llama_n_ctx, (const llama_context *)) \
    F(uint32_t, llama_n_ctx_seq, (const llama_context *)) \
    F(uint32_t, llama_n_batch, (const llama_context *)) \
    F(uint32_t, llama_n_ubatch, (const llama_context *)) \
    F(uint32_t, llama_n_seq_max, (const llama_context *)) \
    F(void, llama_memory_clear, (llama_memory_i *, bool)) \
    F(bool, llama_memory_seq_rm, (llama_memory_i *, llama_seq_id, llama_pos, llama_pos)) \
    F(llama_pos, llama_memory_seq_pos_min, (llama_memory_i *, llama_seq_id)) \
    F(llama_pos, llama_memory_seq_pos_max, (llama_memory_i *, llama_seq_id)) \
    F(size_t, llama_state_seq_get_size, (llama_context *, llama_seq_id)) \
    F(size_t, llama_state_seq_get_data, (llama_context *, uint8_t *, size_t, llama_seq_id)) \
    F(size_t, llama_state_seq_set_data, (llama_context *, const uint8_t *, size_t, llama_seq_id)) \
    F(int32_t, llama_decode, (llama_context *, llama_batch)) \
    F(void, llama_set_n_threads, (llama_context *, int32_t, int32_t)) \
    F(void, llama_set_abort_callback, (llama_context *, inferno_abort_fn, void *)) \
    F(void, llama_synchronize, (llama_context *)) \
    F(float *, llama_get_logits_ith, (llama_context *, int32_t)) \
    F(void, llama_sampler_accept, (llama_sampler *, llama_token)) \
    F(void, llama_sampler_apply, (llama_sampler *, llama_token_data_array *)) \
    F(void, llama_sampler_free, (llama_sampler *)) \
    F(llama_sampler *, llama_sampler_chain_init, (llama_sampler_chain_params)) \
    F(void, llama_sampler_chain_add, (llama_sampler *, llama_sampler *)) \
    F(llama_sampler *, llama_sampler_init_greedy, (void)) \
    F(llama_sampler *, llama_sampler_init_dist, (uint32_t)) \
    F(llama_sampler *, llama_sampler_init_top_k, (int32_t)) \
    F(llama_sampler *, llama_sampler_init_top_p, (float, size_t)) \
    F(llama_sampler *, llama_sampler_init_min_p, (float, size_t)) \
    F(llama_sampler *, llama_sampler_init_typical, (float, size_t)) \
    F(llama_sampler *, llama_sampler_init_temp, (float)) \
    F(llama_sampler *, llama_sampler_init_xtc, (float, float, size_t, uint32_t)) \
    F(llama_sampler *, llama_sampler_init_mirostat, (int32_t, uint32_t, float, float, int32_t)) \
    F(llama_sampler *, llama_sampler_init_mirostat_v2, (uint32_t, float, float)) \
    F(llama_sampler *, llama_sampler_init_grammar, (const llama_vocab *, const char *, const char *)) \
    F(llama_sampler *, llama_sampler_init_penalties, (int32_t, int32_t, float, float, float)) \
    F(llama_sampler *, llama_sampler_init_dry, \
      (const llama_vocab *, float, float, int32_t, int32_t, const char **, size_t)) \
    F(llama_sampler *, llama_sampler_init_logit_bias, (int32_t, int32_t, const llama_logit_bias *)) \
    F(size_t, ggml_backend_reg_count, (void)) \
    F(size_t, ggml_backend_dev_count, (void)) \
    F(void, ggml_backend_load_all_from_path, (const char *)) \
    F(ggml_backend_device *, ggml_backend_dev_get, (size_t)) \
    F(const char *, ggml_backend_dev_name, (ggml_backend_device *)) \
    F(const char *, ggml_backend_dev_description, (ggml_backend_device *)) \
    F(int, ggml_backend_dev_type, (ggml_backend_device *)) \
    F(void, ggml_backend_dev_memory, (ggml_backend_device *, size_t *, size_t *))

struct LlamaApi {
#define INFERNO_FIELD(result, name, parameters) result (*name) parameters;
    INFERNO_LLAMA_FUNCTIONS(INFERNO_FIELD)
#undef INFERNO_FIELD
};

struct inferno_symbol {
    const char *name;
    size_t offset;  /* of its pointer in LlamaApi */
};

static const inferno_symbol inferno_symbols[] = {
#define INFERNO_SYMBOL(result, name, parameters) {#name, offsetof(LlamaApi, name)},
    INFERNO_LLAMA_FUNCTIONS(INFERNO_SYMBOL)
#undef INFERNO_SYMBOL
};
static const size_t inferno_num_symbols = sizeof(inferno_symbols) / sizeof(inferno_symbols[0]);

static inline void inferno_set_symbol(LlamaApi *api, size_t offset, void *address) {
    memcpy(reinterpret_cast<char *>(api) + offset, &address, sizeof address);
}

struct inferno_field {
    const char *name;
    size_t offset;
    size_t size;
};

#define INFERNO_F(s, f) {#f, offsetof(s, f), sizeof(s::f)}
static const inferno_field inferno_model_fields[] = {
    INFERNO_F(llama_model_params, n_gpu_layers), INFERNO_F(llama_model_params, split_mode),
    INFERNO_F(llama_model_params, load_mode), INFERNO_F(llama_model_params, main_gpu),
    INFERNO_F(llama_model_params, tensor_split), INFERNO_F(llama_model_params, progress_callback),
    INFERNO_F(llama_model_params, progress_callback_user_data), INFERNO_F(llama_model_params, kv_overrides),
    INFERNO_F(llama_model_params, vocab_only), INFERNO_F(llama_model_params, check_tensors),
    INFERNO_F(llama_model_params, use_extra_bufts), INFERNO_F(llama_model_params, load_mtp),
};
static const inferno_field inferno_context_fields[] = {
    INFERNO_F(llama_context_params, n_ctx), INFERNO_F(llama_context_params, n_batch),
    INFERNO_F(llama_context_params, n_ubatch), INFERNO_F(llama_context_params, n_seq_max),
    INFERNO_F(llama_context_params, n_outputs_max), INFERNO_F(llama_context_params, n_threads),
    INFERNO_F(llama_context_params, n_threads_batch), INFERNO_F(llama_context_params, flash_attn_type),
    INFERNO_F(llama_context_params, rope_freq_base), INFERNO_F(llama_context_params, cb_eval),
    INFERNO_F(llama_context_params, type_k), INFERNO_F(llama_context_params, type_v),
    INFERNO_F(llama_context_params, abort_callback), INFERNO_F(llama_context_params, abort_callback_data),
    INFERNO_F(llama_context_params, embeddings), INFERNO_F(llama_context_params, no_perf),
    INFERNO_F(llama_context_params, swa_full), INFERNO_F(llama_context_params, kv_unified),
    INFERNO_F(llama_context_params, samplers), INFERNO_F(llama_context_params, n_samplers),
};
static const inferno_field inferno_batch_fields[] = {
    INFERNO_F(llama_batch, n_tokens), INFERNO_F(llama_batch, token), INFERNO_F(llama_batch, embd),
    INFERNO_F(llama_batch, pos), INFERNO_F(llama_batch, n_seq_id), INFERNO_F(llama_batch, seq_id),
    INFERNO_F(llama_batch, logits),
};
static const inferno_field inferno_array_fields[] = {
    INFERNO_F(llama_token_data_array, data), INFERNO_F(llama_token_data_array, size),
    INFERNO_F(llama_token_data_array, selected), INFERNO_F(llama_token_data_array, sorted),
};
#undef INFERNO_F
#define INFERNO_COUNT(a) (sizeof(a) / sizeof((a)[0]))
static const size_t inferno_num_model_fields = INFERNO_COUNT(inferno_model_fields);
static const size_t inferno_num_context_fields = INFERNO_COUNT(inferno_context_fields);
static const size_t inferno_num_batch_fields = INFERNO_COUNT(inferno_batch_fields);
static const size_t inferno_num_array_fields = INFERNO_COUNT(inferno_array_fields);

/* Runs `call` and reports whether an exception was caught; its text goes to `why` (always terminated). */
template <class Call> static inline bool inferno_guard(char *why, size_t why_size, Call call) {
    try {
        call();
        return true;
    } catch (const std::exception &error) {
        snprintf(why, why_size, "%s", error.what());
    } catch (...) {
        snprintf(why, why_size, "an exception of unknown type");
    }
    return false;
}

static const int INFERNO_THREW = INT32_MIN + 1;  /* no llama.cpp function returns this */

static inline llama_model *inferno_load_file(
        const LlamaApi *api, FILE *file, llama_model_params params, char *why, size_t why_size) {
    llama_model *model = nullptr;
    inferno_guard(why, why_size, [&] { model = api->llama_model_load_from_file_ptr(file, params); });
    return model;
}

static inline llama_model *inferno_load_splits(
        const LlamaApi *api, const char **paths, size_t n, llama_model_params params, char *why, size_t why_size) {
    llama_model *model = nullptr;
    inferno_guard(why, why_size, [&] { model = api->llama_model_load_from_splits(paths, n, params); });
    return model;
}

static inline llama_context *inferno_new_context(
        const LlamaApi *api, llama_model *model, llama_context_params params, char *why, size_t why_size) {
    llama_context *context = nullptr;
    inferno_guard(why, why_size, [&] { context = api->llama_init_from_model(model, params); });
    return context;
}

static inline int inferno_tokenize(
        const LlamaApi *api, const llama_vocab *vocab, const char *text, int32_t size, llama_token *out, int32_t max,
        bool add_special, bool parse_special) {
    char why[64];
    int count = INFERNO_THREW;
    inferno_guard(why, sizeof why, [&] {
        count = api->llama_tokenize(vocab, text, size, out, max, add_special, parse_special);
    });
    return count;
}

static inline int inferno_piece(
        const LlamaApi *api, const llama_vocab *vocab, llama_token token, char *out, int32_t max, bool special) {
    char why[64];
    int count = INFERNO_THREW;
    inferno_guard(why, sizeof why, [&] { count = api->llama_token_to_piece(vocab, token, out, max, 0, special); });
    return count;
}

static inline int inferno_detokenize(
        const LlamaApi *api, const llama_vocab *vocab, const llama_token *tokens, int32_t n, char *out, int32_t max,
        bool special) {
    char why[64];
    int count = INFERNO_THREW;
    inferno_guard(why, sizeof why, [&] {
        count = api->llama_detokenize(vocab, tokens, n, out, max, false, special);
    });
    return count;
}

/* A fixed ring of log lines, written by any thread of the library, read by one of ours. No Python in it. */
struct inferno_log_ring {
    static const size_t LINES = 256, WIDTH = 512;
    std::mutex lock;
    char text[LINES][WIDTH];
    int level[LINES];
    size_t head, count, dropped, open;  /* open: bytes of the unfinished last line */
    int last_level;
};

static inline void inferno_log_write(int level, const char *text, void *user_data) {
    inferno_log_ring *ring = static_cast<inferno_log_ring *>(user_data);
    if (!ring || !text || level == 1) return;  /* debug lines would crowd out the errors */
    std::lock_guard<std::mutex> held(ring->lock);
    if (level == 5) level = ring->last_level;  /* GGML_LOG_LEVEL_CONT */
    ring->last_level = level;
    for (const char *at = text; *at; ++at) {
        if (ring->open == 0) {
            if (ring->count == inferno_log_ring::LINES) {
                ring->head = (ring->head + 1) % inferno_log_ring::LINES;
                ring->count--;
                ring->dropped++;
            }
            ring->count++;
            size_t fresh = (ring->head + ring->count - 1) % inferno_log_ring::LINES;
            ring->level[fresh] = level;
            ring->text[fresh][0] = 0;
        }
        size_t slot = (ring->head + ring->count - 1) % inferno_log_ring::LINES;
        if (*at == '\n') {
            ring->open = 0;
            continue;
        }
        if (ring->open + 1 < inferno_log_ring::WIDTH) {
            ring->text[slot][ring->open] = (*at >= 0 && *at < 32) ? ' ' : *at;
            ring->text[slot][ring->open + 1] = 0;
        }
        ring->open++;
    }
}

static inline void inferno_log_capture(const LlamaApi *api, inferno_log_ring *ring) {
    api->llama_log_set(inferno_log_write, ring);
}

/* Takes the oldest finished line. Returns its level, or -1 when there is none. */
static inline int inferno_log_take(inferno_log_ring *ring, char *out, size_t out_size) {
    std::lock_guard<std::mutex> held(ring->lock);
    if (ring->count == 0 || (ring->count == 1 && ring->open)) return -1;
    snprintf(out, out_size, "%s", ring->text[ring->head]);
    int level = ring->level[ring->head];
    ring->head = (ring->head + 1) % inferno_log_ring::LINES;
    ring->count--;
    return level;
}

#endif
