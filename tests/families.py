"""Language models of many architectures, tiny and with random weights, and what their full forward passes say."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 60
WINDOW = 48
# Every family's name, the architecture, and what its configuration says beyond _COMMON. Windows are shorter than the
# texts of the tests, and those that only a mask knows of (-mask) are longer than what a brief trial would show.
FAMILIES = {
    "llama": ("llama", {"tie_word_embeddings": False}),
    "llama-wide-heads": ("llama", {"head_dim": 16, "attention_bias": True, "rope_theta": 100.0}),
    "qwen2-tied-sliding": (
        "qwen2",
        {
            "num_hidden_layers": 3,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 6,
            "max_window_layers": 1,
        },
    ),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "gpt2": ("gpt2", {}),
    "mistral-sliding": ("mistral", {"sliding_window": 5}),
    "gemma2": (
        "gemma2",
        {
            "head_dim": 8,
            "sliding_window": 4,
            "query_pre_attn_scalar": 5,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            "num_hidden_layers": 4,
            "head_dim": 8,
            "sliding_window": 4,
            "sliding_window_pattern": 2,
            "tie_word_embeddings": False,
        },
    ),
    "phi3": ("phi3", {"partial_rotary_factor": 0.5, "sliding_window": 7}),
    "cohere": ("cohere", {"logit_scale": 0.7, "use_qk_norm": True}),
    "cohere2": (
        "cohere2",
        {"num_hidden_layers": 4, "logit_scale": 0.7, "sliding_window": 4, "sliding_window_pattern": 2},
    ),
    "granite": (
        "granite",
        {"attention_multiplier": 0.2, "residual_multiplier": 0.5, "logits_scaling": 2.0, "embedding_multiplier": 3.0},
    ),
    "hyperclovax": ("hyperclovax", {"logits_scaling": 1.5, "residual_multiplier": 0.5, "use_post_norm": True}),
    "gpt-neox": ("gpt_neox", {"rotary_pct": 0.5, "use_parallel_residual": True}),
    "gpt-oss": (
        "gpt_oss",
        {
            "head_dim": 8,
            "sliding_window": 4,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    ),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-moe": (
        "qwen3_moe",
        {
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
        },
    ),
    "phimoe-mask": ("phimoe", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 14}),
    "llama4-mask": (
        "llama4_text",
        {
            "num_hidden_layers": 4,
            "head_dim": 8,
            "intermediate_size_mlp": 24,
            "num_local_experts": 2,
            "attention_chunk_size": 14,
        },
    ),
    "deepseek-v3": (
        "deepseek_v3",
        {
            "q_lora_rank": 12,
            "kv_lora_rank": 12,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8,
            "v_head_dim": 6,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 24,
            "first_k_dense_replace": 1,
        },
    ),
    "glm-sparse-mask": (
        "glm_moe_dsa",
        {
            "q_lora_rank": 12,
            "kv_lora_rank": 12,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8,
            "v_head_dim": 6,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 24,
            "index_topk": 14,
            "index_n_heads": 8,
            "index_head_dim": 8,
        },
    ),
    "olmo2": ("olmo2", {}),
    "starcoder2": ("starcoder2", {"sliding_window": 5}),
    "nemotron": ("nemotron", {}),
    "stablelm": ("stablelm", {}),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3}),
    "modernbert": (
        "modernbert-decoder",
        {"num_hidden_layers": 3, "local_attention": 8, "global_attn_every_n_layers": 2},
    ),
    "falcon": ("falcon", {"multi_query": True, "new_decoder_architecture": False, "parallel_attn": True}),
    "falcon-alibi": ("falcon", {"alibi": True}),
    "bloom": ("bloom", {"n_layer": 2, "n_head": 4}),
    "mamba": ("mamba", {"state_size": 4, "expand": 2, "conv_kernel": 4, "time_step_rank": 4}),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3, "block_auto_adjust_ff_dim": False}),
    "falcon-h1": (
        "falcon_h1",
        {
            "head_dim": 8,
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 4,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 8,
            "lm_head_multiplier": 0.5,
        },
    ),
    "qwen3-next": (
        "qwen3_next",
        {
            "layer_types": ["linear_attention", "full_attention"],
            "head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 24,
        },
    ),
    "recurrent-gemma": (
        "recurrent_gemma",
        {
            "num_hidden_layers": 3,
            "head_dim": 8,
            "lru_width": 32,
            "attention_window_size": 5,
            "logits_soft_cap": 3.0,
            "w_init_variance_scale": 3.0,
        },
    ),
    "jamba": (
        "jamba",
        {
            "num_hidden_layers": 3,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 2,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
        },
    ),
}
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": WINDOW,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def build(family):
    """The same model each time; no bias is zero and no factor one, as they are in a new model."""
    architecture, own = FAMILIES[family]
    torch.manual_seed(7)
    config = AutoConfig.for_model(architecture, **{**_COMMON, **own})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1 or name.endswith("bias"):
                weight.add_(torch.randn_like(weight), alpha=0.2)
    return model


def round_to(dtype, model, folder):
    """The model in `dtype`, loaded as any is, and the float32 model with the same weights."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(dtype))
    model.save_pretrained(folder)
    rounded = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=dtype)
    return rounded.eval(), model


def words(pad_token=None):
    """A tokenizer of numbered words; the first ends a reply."""
    vocabulary = {"<end>": 0, **{f"word{k}": k for k in range(1, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="word1"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token=pad_token)  # noqa: S106


def full_log_probs(model, prompt, reply):
    """The law (len(reply), vocabulary) of each token of the reply, by one pass over the whole text without a cache."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*prompt, *reply]]), use_cache=False).logits[0].double()
    return logits[len(prompt) - 1 : len(prompt) + len(reply) - 1].log_softmax(-1)


def combined_log_probs(model, prompts, powers, reply):
    """Each token's log-probability (len(reply),) under the product of the prompts' laws, raised to their powers."""
    laws = [power * full_log_probs(model, prompt, reply) for prompt, power in zip(prompts, powers, strict=True)]
    return sum(laws).log_softmax(-1)[range(len(reply)), list(reply)].numpy()
