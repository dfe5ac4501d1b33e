// MLX, by mlx-lm. Files are those of the package.
#include "runtimes/rule.h"

namespace moetrim::runtime_rules {

namespace {

using enum Demand;
using enum QuantScheme;
using enum RuleSeverity;

}  // namespace

const RuntimeRules mlx{
    .name = "mlx",
    .version = "0.32.2",
    .read_from = "mlx-lm from PyPI",
    .quants = {{"bf16", none}, {"affine", blocks, 64, true}, {"mxfp4", blocks, 32}, {"mxfp8", blocks, 32},
               {"nvfp4", blocks, 16}},
    .rules = {
        {.id = "mlx.model-type", .fact = Fact::model_type, .demand = named,
         .names = {"deepseek_v2", "deepseek_v3", "kimi_k2", "dots1", "ernie4_5_moe", "glm4_moe", "gpt_oss",
                   "granitemoe", "llama4", "llama4_text", "minimax_m2", "mixtral", "olmoe", "phimoe", "qwen2_moe",
                   "qwen3_5_moe", "qwen3_moe", "qwen3_next", "qwen3_vl_moe"},
         .why = "it has no module of that name",
         .source = "mlx_lm/models/*.py, utils.py:48, 221"},
        {.id = "mlx.one-count", .fact = Fact::listed_counts, .demand = absent,
         .why = "it stacks as many experts as config.json says, in every layer",
         .source = "mlx_lm/models/qwen3_moe.py: sanitize; github.com/egesabanci/reap-mlx/issues/80"},
        {.id = "mlx.one-width", .fact = Fact::listed_widths, .demand = absent,
         .why = "the experts of a layer are stacked in one array",
         .source = "mlx_lm/models/switch_layers.py"},
        {.id = "mlx.groups-divide", .fact = Fact::experts, .demand = multiple_of, .times = Times::groups,
         .when = {When::grouped},
         .why = "scores are reshaped to groups of one size",
         .source = "mlx_lm/models/deepseek_v3.py:209"},
        {.id = "mlx.groups-hold-two", .fact = Fact::experts_per_group, .demand = at_least, .number = 2,
         .when = {When::grouped, When::biased},
         .why = "a group is scored by its two best experts",
         .source = "mlx_lm/models/deepseek_v3.py:210"},
        {.id = "mlx.group-size", .fact = Fact::width, .demand = multiple_of, .times = Times::block, .quant = {blocks},
         .severity = slower,
         .why = "a down_proj whose rows are no multiple of the group stays as it is, and the model is larger",
         .source = "mlx_lm/utils.py:1060"},
    },
};

}  // namespace moetrim::runtime_rules
