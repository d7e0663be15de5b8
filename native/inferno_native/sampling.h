/* One row of logits → one token, through llama.cpp's sampler chain, without the GIL and without letting a C++
 * exception out. Also the row's log probabilities. The caller owns every buffer; rows are independent. */
#ifndef INFERNO_SAMPLING_H
#define INFERNO_SAMPLING_H

#include <cmath>

#include "llama_abi.h"

static const int INFERNO_MAX_TOP = 20;

enum inferno_sample_status {
    INFERNO_SAMPLED = 0,
    INFERNO_NOTHING_LEFT = 1,   /* every candidate is forbidden */
    INFERNO_SAMPLER_THREW = 2,  /* the sampler must not be used again */
    INFERNO_BAD_LOGITS = 3,     /* the model gave NaN or only infinities */
};

struct inferno_logprobs {
    int32_t num_top;  /* in: how many are wanted */
    llama_token top[INFERNO_MAX_TOP];
    float top_logprob[INFERNO_MAX_TOP];
    float max_logit, log_sum;  /* out: logprob of token t is logit[t] - max_logit - log_sum */
};

/* log softmax of raw logits, and the most likely tokens (ties: the lower id). */
static inline bool inferno_log_softmax(const float *logits, int32_t n_vocab, inferno_logprobs *out) {
    float max = -INFINITY;
    for (int32_t i = 0; i < n_vocab; i++) max = logits[i] > max ? logits[i] : max;
    if (!std::isfinite(max)) return false;
    double sum = 0;
    int32_t kept = 0;
    for (int32_t i = 0; i < n_vocab; i++) {
        float logit = logits[i];
        sum += std::exp(static_cast<double>(logit - max));
        if (out->num_top == 0 || (kept == out->num_top && !(logit > out->top_logprob[kept - 1]))) continue;
        int32_t at = kept < out->num_top ? kept++ : kept - 1;
        while (at > 0 && out->top_logprob[at - 1] < logit) {
            out->top[at] = out->top[at - 1];
            out->top_logprob[at] = out->top_logprob[at - 1];
            at--;
        }
        out->top[at] = i;
        out->top_logprob[at] = logit;
    }
    out->max_logit = max;
    out->log_sum = static_cast<float>(std::log(sum));
    for (int32_t i = 0; i < kept; i++) out->top_logprob[i] = out->top_logprob[i] - max - out->log_sum;
    out->num_top = kept;
    return std::isfinite(sum);
}

static inline int inferno_argmax(const float *logits, int32_t n_vocab, llama_token *token) {
    float max = -INFINITY;
    llama_token best = -1;
    for (int32_t i = 0; i < n_vocab; i++) {
        if (logits[i] > max) {
            max = logits[i];
            best = i;
        }
    }
    *token = best;
    if (best < 0) return INFERNO_NOTHING_LEFT;
    return std::isfinite(max) ? INFERNO_SAMPLED : INFERNO_BAD_LOGITS;
}

static inline void inferno_fill(
        const float *logits, int32_t n_vocab, llama_token_data *scratch, llama_token_data_array *row) {
    for (int32_t i = 0; i < n_vocab; i++) {
        scratch[i].id = i;
        scratch[i].logit = logits[i];
        scratch[i].p = 0.0f;
    }
    row->data = scratch;
    row->size = static_cast<size_t>(n_vocab);
    row->selected = -1;
    row->sorted = false;
}

/* `grammar` may be NULL. A token of the chain that the grammar rejects is drawn again among those that it allows. */
static inline int inferno_sample_chain(
        const LlamaApi *api, llama_sampler *chain, llama_sampler *grammar, const float *logits, int32_t n_vocab,
        llama_token_data *scratch, llama_token *token) {
    char why[64];
    int status = INFERNO_NOTHING_LEFT;
    bool ran = inferno_guard(why, sizeof why, [&] {
        llama_token_data_array row;
        inferno_fill(logits, n_vocab, scratch, &row);
        api->llama_sampler_apply(chain, &row);
        if (row.selected < 0 || row.selected >= static_cast<int64_t>(row.size)) return;
        llama_token_data chosen = row.data[row.selected];
        if (grammar) {
            llama_token_data one = {chosen.id, 1.0f, 0.0f};
            llama_token_data_array single = {&one, 1, -1, false};
            api->llama_sampler_apply(grammar, &single);
            if (one.logit == -INFINITY || !(chosen.logit > -INFINITY)) {
                inferno_fill(logits, n_vocab, scratch, &row);
                api->llama_sampler_apply(grammar, &row);
                bool any = false;
                for (size_t i = 0; i < row.size && !any; i++) any = row.data[i].logit > -INFINITY;
                if (!any) return;
                api->llama_sampler_apply(chain, &row);
                if (row.selected < 0 || row.selected >= static_cast<int64_t>(row.size)) return;
                chosen = row.data[row.selected];
            }
        }
        if (chosen.id < 0 || chosen.id >= n_vocab) return;
        if (std::isnan(chosen.logit)) {
            status = INFERNO_BAD_LOGITS;
            return;
        }
        if (!(chosen.logit > -INFINITY)) return;
        *token = chosen.id;
        status = INFERNO_SAMPLED;
    });
    return ran ? status : INFERNO_SAMPLER_THREW;
}

/* Tells the samplers of a chosen token. An end token must not reach the grammar: llama.cpp aborts on it. */
static inline int inferno_accept(
        const LlamaApi *api, llama_sampler *chain, llama_sampler *grammar, llama_token token) {
    char why[64];
    bool ran = inferno_guard(why, sizeof why, [&] {
        if (grammar) api->llama_sampler_accept(grammar, token);
        if (chain) api->llama_sampler_accept(chain, token);
    });
    return ran ? INFERNO_SAMPLED : INFERNO_SAMPLER_THREW;
}

static inline llama_sampler *inferno_new_grammar(const LlamaApi *api, const llama_vocab *vocab, const char *text) {
    char why[64];
    llama_sampler *made = nullptr;
    inferno_guard(why, sizeof why, [&] { made = api->llama_sampler_init_grammar(vocab, text, "root"); });
    return made;
}

/* Adds `made` to the chain; false when making it failed. */
template <class Make> static inline bool inferno_add(const LlamaApi *api, llama_sampler *chain, Make make) {
    char why[64];
    llama_sampler *made = nullptr;
    inferno_guard(why, sizeof why, [&] {
        made = make();
        if (made) api->llama_sampler_chain_add(chain, made);
    });
    return made != nullptr;
}

struct inferno_chain_params {
    float temperature, top_p, min_p, typical_p;
    int32_t top_k;
    float repeat_penalty, frequency_penalty, presence_penalty;
    int32_t repeat_last_n;
    float dry_multiplier, dry_base;
    int32_t dry_allowed_length, dry_penalty_last_n;
    const char **dry_breakers;
    size_t num_dry_breakers;
    float xtc_probability, xtc_threshold;
    int32_t mirostat;
    float mirostat_tau, mirostat_eta;
    uint32_t seed;
};

/* llama.cpp's usual order: penalties, DRY, top-k, typical, top-p, min-p, XTC, temperature, then the draw. */
static inline llama_sampler *inferno_new_chain(
        const LlamaApi *api, const llama_vocab *vocab, int32_t n_vocab, const inferno_chain_params *p) {
    llama_sampler_chain_params params = api->llama_sampler_chain_default_params();
    params.no_perf = true;
    llama_sampler *chain = api->llama_sampler_chain_init(params);
    if (!chain) return nullptr;
    bool good = true;
    auto add = [&](auto make) { good = inferno_add(api, chain, make) && good; };
    if (p->repeat_last_n > 0 &&
        (p->repeat_penalty != 1.0f || p->frequency_penalty != 0.0f || p->presence_penalty != 0.0f))
        add([&] {
            return api->llama_sampler_init_penalties(
                n_vocab, p->repeat_last_n, p->repeat_penalty, p->frequency_penalty, p->presence_penalty);
        });
    if (p->dry_multiplier > 0.0f && p->dry_penalty_last_n > 0)
        add([&] {
            return api->llama_sampler_init_dry(
                vocab, p->dry_multiplier, p->dry_base, p->dry_allowed_length, p->dry_penalty_last_n,
                p->dry_breakers, p->num_dry_breakers);
        });
    if (p->temperature <= 0.0f) {
        add([&] { return api->llama_sampler_init_greedy(); });
    } else if (p->mirostat == 1) {
        add([&] { return api->llama_sampler_init_temp(p->temperature); });
        add([&] {
            return api->llama_sampler_init_mirostat(n_vocab, p->seed, p->mirostat_tau, p->mirostat_eta, 100);
        });
    } else if (p->mirostat == 2) {
        add([&] { return api->llama_sampler_init_temp(p->temperature); });
        add([&] { return api->llama_sampler_init_mirostat_v2(p->seed, p->mirostat_tau, p->mirostat_eta); });
    } else {
        if (p->top_k > 0) add([&] { return api->llama_sampler_init_top_k(p->top_k); });
        if (p->typical_p < 1.0f) add([&] { return api->llama_sampler_init_typical(p->typical_p, 1); });
        if (p->top_p < 1.0f) add([&] { return api->llama_sampler_init_top_p(p->top_p, 1); });
        if (p->min_p > 0.0f) add([&] { return api->llama_sampler_init_min_p(p->min_p, 1); });
        if (p->xtc_probability > 0.0f)
            add([&] {
                return api->llama_sampler_init_xtc(p->xtc_probability, p->xtc_threshold, 1, p->seed ^ 0x9e3779b9u);
            });
        if (p->temperature != 1.0f) add([&] { return api->llama_sampler_init_temp(p->temperature); });
        add([&] { return api->llama_sampler_init_dist(p->seed); });
    }
    if (!good) {
        api->llama_sampler_free(chain);
        return nullptr;
    }
    return chain;
}

#endif
