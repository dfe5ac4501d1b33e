// transformers. Files are those of the package.
#include "runtimes/rule.h"

namespace moetrim::runtime_rules {

namespace {

using enum Demand;

}  // namespace

const RuntimeRules transformers{
    .name = "transformers",
    .version = "5.23.0",
    .read_from = "transformers from PyPI",
    .spread = Spread::whole,
    .keys = {"tp", "ep", "trust_remote_code"},
    .rules = {
        {.id = "transformers.model-type", .fact = Fact::model_type, .demand = named,
         .names = {"deepseek_v2", "deepseek_v3", "dots1", "ernie4_5_moe", "glm4_moe", "gpt_oss", "granitemoe",
                   "hunyuan_v1_moe", "llama4", "llama4_text", "minimax_m2", "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_5_moe",
                   "qwen3_5_moe_text", "qwen3_moe", "qwen3_next", "qwen3_vl_moe", "qwen3_vl_moe_text"},
         .when = {When::own_code},
         .why = "it has no class for it",
         .source = "models/auto/configuration_auto.py"},
        {.id = "transformers.one-count", .fact = Fact::listed_counts, .demand = absent, .when = {When::own_code},
         .why = "one number of config.json sizes the experts of all layers; moetrim's class reads a list",
         .source = "models/qwen3_moe/modeling_qwen3_moe.py"},
        {.id = "transformers.one-width", .fact = Fact::listed_widths, .demand = absent, .when = {When::own_code},
         .why = "one number of config.json sizes all experts; moetrim's class reads a list",
         .source = "models/qwen3_moe/modeling_qwen3_moe.py"},
        {.id = "transformers.groups-divide", .fact = Fact::experts, .demand = multiple_of, .times = Times::groups,
         .when = {When::grouped},
         .why = "for some numbers of tokens it fails, for others it runs and masks the wrong experts",
         .source = "models/deepseek_v3/modeling_deepseek_v3.py:139; github.com/huggingface/transformers/issues/48647"},
        {.id = "transformers.groups-hold-two", .fact = Fact::experts_per_group, .demand = at_least, .number = 2,
         .when = {When::grouped, When::biased},
         .why = "a group is scored by its two best experts",
         .source = "models/deepseek_v3/modeling_deepseek_v3.py:140"},
        {.id = "transformers.tp-heads", .fact = Fact::heads, .demand = multiple_of, .times = Times::tp,
         .when = {When::plain_attention},
         .why = "every rank views its columns as whole attention heads",
         .source = "models/qwen3_moe/modeling_qwen3_moe.py:161"},
        {.id = "transformers.tp-key-value-heads", .fact = Fact::key_value_heads, .demand = multiple_of, .times = Times::tp,
         .when = {When::plain_attention},
         .why = "key-value heads are split over the ranks and never copied",
         .source = "distributed/tensor_parallel.py:90"},
        {.id = "transformers.ep-tp", .fact = Fact::ep, .demand = multiple_of, .times = Times::tp,
         .when = {When::expert_parallel},
         .why = "the ranks of ep are those of tp, several times over",
         .source = "distributed/configuration_utils.py:182"},
        {.id = "transformers.ep-even", .fact = Fact::experts, .demand = multiple_of, .times = Times::ep,
         .why = "every rank holds as many experts",
         .source = "distributed/expert_parallel.py:103"},
    },
};

}  // namespace moetrim::runtime_rules
