"""The contract of inferno_native.llama: llama.cpp's structs and functions as other extensions call them.

`api` is the one table of function pointers, empty until `load_library()` succeeded. Model keeps the pointers that it
hands out alive; whoever stores `Vocab.ptr` or `Model.ptr` must hold a reference to that object.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport FILE
from libcpp cimport bool


cdef extern from "llama_abi.h" nogil:
    cdef struct llama_vocab:
        pass
    cdef struct llama_model:
        pass
    cdef struct llama_context:
        pass
    cdef struct llama_sampler:
        pass
    cdef struct llama_memory_i:
        pass
    cdef struct ggml_backend_device:
        pass

    ctypedef int32_t llama_token
    ctypedef int32_t llama_pos
    ctypedef int32_t llama_seq_id
    ctypedef bool (*inferno_progress_fn)(float, void *) noexcept nogil
    ctypedef bool (*inferno_abort_fn)(void *) noexcept nogil
    ctypedef void (*inferno_log_fn)(int, const char *, void *) noexcept nogil

    cdef struct llama_token_data:
        llama_token id
        float logit
        float p

    cdef struct llama_token_data_array:
        llama_token_data *data
        size_t size
        int64_t selected
        bool sorted

    cdef struct llama_batch:
        int32_t n_tokens
        llama_token *token
        float *embd
        llama_pos *pos
        int32_t *n_seq_id
        llama_seq_id **seq_id
        int8_t *logits

    cdef struct llama_model_params:
        int32_t n_gpu_layers
        int32_t load_mode
        inferno_progress_fn progress_callback
        void *progress_callback_user_data
        bool vocab_only
        bool check_tensors
        bool use_extra_bufts

    cdef struct llama_context_params:
        uint32_t n_ctx
        uint32_t n_batch
        uint32_t n_ubatch
        uint32_t n_seq_max
        uint32_t n_outputs_max
        uint32_t n_outputs_max_per_seq
        int32_t n_threads
        int32_t n_threads_batch
        int32_t flash_attn_type  # -1 auto, 0 off, 1 on
        int32_t type_k
        int32_t type_v
        inferno_abort_fn abort_callback
        void *abort_callback_data
        float rope_freq_base
        bool embeddings
        bool offload_kqv
        bool no_perf
        bool op_offload
        bool swa_full
        bool kv_unified

    cdef struct llama_sampler_chain_params:
        bool no_perf

    cdef struct llama_logit_bias:
        llama_token token
        float bias

    cdef struct LlamaApi:
        const char *(*llama_version)() noexcept nogil
        void (*llama_backend_init)() noexcept nogil
        void (*llama_log_set)(inferno_log_fn, void*) noexcept nogil
        const char *(*llama_print_system_info)() noexcept nogil
        bool (*llama_supports_gpu_offload)() noexcept nogil
        size_t (*llama_max_parallel_sequences)() noexcept nogil
        llama_model_params (*llama_model_default_params)() noexcept nogil
        llama_context_params (*llama_context_default_params)() noexcept nogil
        llama_sampler_chain_params (*llama_sampler_chain_default_params)() noexcept nogil
        llama_model *(*llama_model_load_from_file_ptr)(FILE*, llama_model_params) noexcept nogil
        llama_model *(*llama_model_load_from_splits)(const char **, size_t, llama_model_params) noexcept nogil
        void (*llama_model_free)(llama_model*) noexcept nogil
        const llama_vocab *(*llama_model_get_vocab)(const llama_model*) noexcept nogil
        int32_t (*llama_model_n_ctx_train)(const llama_model*) noexcept nogil
        int32_t (*llama_model_n_embd)(const llama_model*) noexcept nogil
        int32_t (*llama_model_n_layer)(const llama_model*) noexcept nogil
        int32_t (*llama_model_n_head)(const llama_model*) noexcept nogil
        int32_t (*llama_model_n_head_kv)(const llama_model*) noexcept nogil
        int32_t (*llama_model_n_swa)(const llama_model*) noexcept nogil
        int32_t (*llama_model_desc)(const llama_model*, char*, size_t) noexcept nogil
        int32_t (*llama_model_ftype)(const llama_model*) noexcept nogil
        const char *(*llama_ftype_name)(int32_t) noexcept nogil
        uint64_t (*llama_model_size)(const llama_model*) noexcept nogil
        uint64_t (*llama_model_n_params)(const llama_model*) noexcept nogil
        const char *(*llama_model_chat_template)(const llama_model*, const char*) noexcept nogil
        bool (*llama_model_has_encoder)(const llama_model*) noexcept nogil
        bool (*llama_model_has_decoder)(const llama_model*) noexcept nogil
        bool (*llama_model_is_recurrent)(const llama_model*) noexcept nogil
        bool (*llama_model_is_hybrid)(const llama_model*) noexcept nogil
        bool (*llama_model_is_diffusion)(const llama_model*) noexcept nogil
        int32_t (*llama_model_meta_count)(const llama_model*) noexcept nogil
        int32_t (*llama_model_meta_val_str)(const llama_model*, const char*, char*, size_t) noexcept nogil
        int32_t (*llama_model_meta_key_by_index)(const llama_model*, int32_t, char*, size_t) noexcept nogil
        int32_t (*llama_vocab_n_tokens)(const llama_vocab*) noexcept nogil
        int32_t (*llama_vocab_type)(const llama_vocab*) noexcept nogil
        const char *(*llama_vocab_get_text)(const llama_vocab*, llama_token) noexcept nogil
        float (*llama_vocab_get_score)(const llama_vocab*, llama_token) noexcept nogil
        int32_t (*llama_vocab_get_attr)(const llama_vocab*, llama_token) noexcept nogil
        bool (*llama_vocab_is_eog)(const llama_vocab*, llama_token) noexcept nogil
        bool (*llama_vocab_is_control)(const llama_vocab*, llama_token) noexcept nogil
        llama_token (*llama_vocab_bos)(const llama_vocab*) noexcept nogil
        llama_token (*llama_vocab_eos)(const llama_vocab*) noexcept nogil
        llama_token (*llama_vocab_eot)(const llama_vocab*) noexcept nogil
        llama_token (*llama_vocab_sep)(const llama_vocab*) noexcept nogil
        llama_token (*llama_vocab_nl)(const llama_vocab*) noexcept nogil
        llama_token (*llama_vocab_pad)(const llama_vocab*) noexcept nogil
        bool (*llama_vocab_get_add_bos)(const llama_vocab*) noexcept nogil
        bool (*llama_vocab_get_add_eos)(const llama_vocab*) noexcept nogil
        const llama_token *(*llama_vocab_get_suppress_tokens)(const llama_vocab*, int32_t*) noexcept nogil
        int32_t (*llama_tokenize)(const llama_vocab*, const char*, int32_t, llama_token*, int32_t, bool, bool) noexcept nogil
        int32_t (*llama_token_to_piece)(const llama_vocab*, llama_token, char*, int32_t, int32_t, bool) noexcept nogil
        int32_t (*llama_detokenize)(const llama_vocab*, const llama_token*, int32_t, char*, int32_t, bool, bool) noexcept nogil
        llama_context *(*llama_init_from_model)(llama_model*, llama_context_params) noexcept nogil
        void (*llama_free)(llama_context*) noexcept nogil
        llama_memory_i *(*llama_get_memory)(const llama_context*) noexcept nogil
        uint32_t (*llama_n_ctx)(const llama_context*) noexcept nogil
        uint32_t (*llama_n_ctx_seq)(const llama_context*) noexcept nogil
        uint32_t (*llama_n_batch)(const llama_context*) noexcept nogil
        uint32_t (*llama_n_ubatch)(const llama_context*) noexcept nogil
        uint32_t (*llama_n_seq_max)(const llama_context*) noexcept nogil
        void (*llama_memory_clear)(llama_memory_i*, bool) noexcept nogil
        bool (*llama_memory_seq_rm)(llama_memory_i*, llama_seq_id, llama_pos, llama_pos) noexcept nogil
        llama_pos (*llama_memory_seq_pos_min)(llama_memory_i*, llama_seq_id) noexcept nogil
        llama_pos (*llama_memory_seq_pos_max)(llama_memory_i*, llama_seq_id) noexcept nogil
        size_t (*llama_state_seq_get_size)(llama_context*, llama_seq_id) noexcept nogil
        size_t (*llama_state_seq_get_data)(llama_context*, uint8_t*, size_t, llama_seq_id) noexcept nogil
        size_t (*llama_state_seq_set_data)(llama_context*, const uint8_t*, size_t, llama_seq_id) noexcept nogil
        int32_t (*llama_decode)(llama_context*, llama_batch) noexcept nogil
        void (*llama_set_n_threads)(llama_context*, int32_t, int32_t) noexcept nogil
        void (*llama_set_abort_callback)(llama_context*, inferno_abort_fn, void*) noexcept nogil
        void (*llama_synchronize)(llama_context*) noexcept nogil
        float *(*llama_get_logits_ith)(llama_context*, int32_t) noexcept nogil
        void (*llama_sampler_accept)(llama_sampler*, llama_token) noexcept nogil
        void (*llama_sampler_apply)(llama_sampler*, llama_token_data_array*) noexcept nogil
        void (*llama_sampler_free)(llama_sampler*) noexcept nogil
        llama_sampler *(*llama_sampler_chain_init)(llama_sampler_chain_params) noexcept nogil
        void (*llama_sampler_chain_add)(llama_sampler*, llama_sampler*) noexcept nogil
        llama_sampler *(*llama_sampler_init_greedy)() noexcept nogil
        llama_sampler *(*llama_sampler_init_dist)(uint32_t) noexcept nogil
        llama_sampler *(*llama_sampler_init_top_k)(int32_t) noexcept nogil
        llama_sampler *(*llama_sampler_init_top_p)(float, size_t) noexcept nogil
        llama_sampler *(*llama_sampler_init_min_p)(float, size_t) noexcept nogil
        llama_sampler *(*llama_sampler_init_typical)(float, size_t) noexcept nogil
        llama_sampler *(*llama_sampler_init_temp)(float) noexcept nogil
        llama_sampler *(*llama_sampler_init_xtc)(float, float, size_t, uint32_t) noexcept nogil
        llama_sampler *(*llama_sampler_init_mirostat)(int32_t, uint32_t, float, float, int32_t) noexcept nogil
        llama_sampler *(*llama_sampler_init_mirostat_v2)(uint32_t, float, float) noexcept nogil
        llama_sampler *(*llama_sampler_init_grammar)(const llama_vocab*, const char*, const char*) noexcept nogil
        llama_sampler *(*llama_sampler_init_penalties)(int32_t, int32_t, float, float, float) noexcept nogil
        llama_sampler *(*llama_sampler_init_dry)(const llama_vocab*, float, float, int32_t, int32_t, const char **, size_t) noexcept nogil
        llama_sampler *(*llama_sampler_init_logit_bias)(int32_t, int32_t, const llama_logit_bias*) noexcept nogil
        size_t (*ggml_backend_reg_count)() noexcept nogil
        size_t (*ggml_backend_dev_count)() noexcept nogil
        void (*ggml_backend_load_all_from_path)(const char*) noexcept nogil
        ggml_backend_device *(*ggml_backend_dev_get)(size_t) noexcept nogil
        const char *(*ggml_backend_dev_name)(ggml_backend_device*) noexcept nogil
        const char *(*ggml_backend_dev_description)(ggml_backend_device*) noexcept nogil
        int (*ggml_backend_dev_type)(ggml_backend_device*) noexcept nogil
        void (*ggml_backend_dev_memory)(ggml_backend_device*, size_t*, size_t*) noexcept nogil

    cdef struct inferno_symbol:
        const char *name
        size_t offset

    const inferno_symbol inferno_symbols[]
    const size_t inferno_num_symbols
    void inferno_set_symbol(LlamaApi *table, size_t offset, void *address) noexcept

    cdef struct inferno_field:
        const char *name
        size_t offset
        size_t size

    const inferno_field inferno_model_fields[]
    const inferno_field inferno_context_fields[]
    const inferno_field inferno_batch_fields[]
    const inferno_field inferno_array_fields[]
    const size_t inferno_num_model_fields
    const size_t inferno_num_context_fields
    const size_t inferno_num_batch_fields
    const size_t inferno_num_array_fields

    # Guarded calls: a C++ exception becomes NULL or INFERNO_THREW, its text goes to `why`.
    const int INFERNO_THREW
    llama_model *inferno_load_file(
        const LlamaApi *, FILE *, llama_model_params, char *why, size_t why_size) noexcept
    llama_model *inferno_load_splits(
        const LlamaApi *, const char **, size_t, llama_model_params, char *why, size_t why_size) noexcept
    llama_context *inferno_new_context(
        const LlamaApi *, llama_model *, llama_context_params, char *why, size_t why_size) noexcept
    int inferno_tokenize(
        const LlamaApi *, const llama_vocab *, const char *, int32_t, llama_token *, int32_t, bool, bool) noexcept
    int inferno_piece(const LlamaApi *, const llama_vocab *, llama_token, char *, int32_t, bool) noexcept
    int inferno_detokenize(
        const LlamaApi *, const llama_vocab *, const llama_token *, int32_t, char *, int32_t, bool) noexcept

    cdef cppclass inferno_log_ring:
        inferno_log_ring() except +
        size_t dropped
    void inferno_log_capture(const LlamaApi *, inferno_log_ring *) noexcept
    int inferno_log_take(inferno_log_ring *, char *, size_t) noexcept


cdef LlamaApi api


cdef class LoadState:
    """Progress of one load, written by the loading thread without the GIL, read by any other."""

    cdef float _fraction
    cdef bint _cancelled


cdef class Model:
    """One loaded model. Frees it when the last reference goes; Vocab and contexts hold references."""

    cdef llama_model *ptr
    cdef readonly bint vocab_only


cdef class Vocab:
    """The vocabulary of a model. Every method is thread-safe; tokenizing releases the GIL."""

    cdef const llama_vocab *ptr
    cdef Model _model
    cdef readonly int n_tokens
    cdef int _check(self, long long token) except -1
