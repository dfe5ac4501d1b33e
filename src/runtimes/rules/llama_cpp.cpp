// llama.cpp: a GGUF file of the checkpoint, of the type that quant names.
#include "runtimes/rule.h"

namespace moetrim::runtime_rules {

namespace {

using enum Demand;
using enum QuantScheme;
using enum RuleSeverity;

}  // namespace

const RuntimeRules llama_cpp{
    .name = "llama.cpp",
    .version = "0.5.0",
    .read_from = "the repository at v0.5.0",
    .keys = {"mtp"},
    .quants = {{"f32", none},          {"f16", none},          {"bf16", none},         {"q8_0", blocks, 32},
               {"q4_0", blocks, 32},   {"q4_1", blocks, 32},   {"q5_0", blocks, 32},   {"q5_1", blocks, 32},
               {"iq4_nl", blocks, 32}, {"mxfp4_moe", blocks, 32}, {"q2_0", blocks, 64}, {"q1_0", blocks, 128},
               {"q2_k", blocks, 256},  {"q2_k_s", blocks, 256}, {"q3_k", blocks, 256},  {"q3_k_s", blocks, 256},
               {"q3_k_m", blocks, 256}, {"q3_k_l", blocks, 256}, {"q4_k", blocks, 256}, {"q4_k_s", blocks, 256},
               {"q4_k_m", blocks, 256}, {"q5_k", blocks, 256},  {"q5_k_s", blocks, 256}, {"q5_k_m", blocks, 256},
               {"q6_k", blocks, 256},  {"iq1_s", blocks, 256}, {"iq1_m", blocks, 256}, {"iq2_xxs", blocks, 256},
               {"iq2_xs", blocks, 256}, {"iq2_s", blocks, 256}, {"iq2_m", blocks, 256}, {"iq3_xxs", blocks, 256},
               {"iq3_xs", blocks, 256}, {"iq3_s", blocks, 256}, {"iq3_m", blocks, 256}, {"iq4_xs", blocks, 256},
               {"tq1_0", blocks, 256}, {"tq2_0", blocks, 256}},
    .rules = {
        {.id = "llama.cpp.architecture", .fact = Fact::family, .demand = named,
         .names = {"deepseek_v2", "deepseek_v3", "dots1", "ernie4_5_moe", "glm4_moe", "gpt_oss", "granitemoe",
                   "hunyuan_v1_moe", "llama4", "minimax_m2", "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_5_moe",
                   "qwen3_moe", "qwen3_next", "qwen3_vl_moe"},
         .why = "it has no architecture for it",
         .source = "conversion/*.py: ModelBase.register"},
        {.id = "llama.cpp.one-count", .fact = Fact::listed_counts, .demand = absent,
         .why = "expert_count is one number, and the stacked tensors of all layers must have it",
         .source = "src/llama-model.cpp:1263; github.com/ggml-org/llama.cpp/issues/25444"},
        {.id = "llama.cpp.one-width", .fact = Fact::listed_widths, .demand = absent,
         .why = "the experts of a layer are stacked in one tensor",
         .source = "src/models/qwen3moe.cpp:50"},
        {.id = "llama.cpp.most-experts", .fact = Fact::experts, .demand = at_most, .number = 1024,
         .why = "its arrays hold no more (LLAMA_MAX_EXPERTS)",
         .source = "src/llama-hparams.h:12, src/llama-model.cpp:1293; github.com/ggml-org/llama.cpp/issues/26192"},
        {.id = "llama.cpp.fewer-groups", .fact = Fact::groups, .demand = below, .times = Times::experts,
         .why = "it aborts with as many groups as experts",
         .source = "src/llama-model.cpp:1297"},
        {.id = "llama.cpp.groups-divide", .fact = Fact::experts, .demand = multiple_of, .times = Times::groups,
         .when = {When::grouped},
         .why = "it aborts with groups of different sizes",
         .source = "src/llama-model.cpp:1299"},
        {.id = "llama.cpp.groups-hold-two", .fact = Fact::experts_per_group, .demand = at_least, .number = 2,
         .when = {When::grouped},
         .why = "a group is scored by its two best experts",
         .source = "src/llama-graph.cpp:2089"},
        {.id = "llama.cpp.groups-left-out", .fact = Fact::groups_chosen, .demand = below, .times = Times::groups,
         .when = {When::grouped, When::gguf_file},
         .why = "it aborts where a token may use all groups; moetrim export writes one group then, which is the same",
         .source = "src/llama-model.cpp:1301"},
        {.id = "llama.cpp.group-score", .fact = Fact::groups_chosen, .demand = equal_to, .times = Times::groups,
         .when = {When::scored_by_best},
         .why = "it scores a group by its two best experts where the checkpoint's router takes the best alone, and would "
                "choose other groups; --regroup makes one of them",
         .source = "src/llama-graph.cpp:2089, conversion/base.py:1481"},
        {.id = "llama.cpp.block", .fact = Fact::width, .demand = multiple_of, .times = Times::block, .quant = {blocks},
         .severity = slower,
         .why = "rows of down_proj that are no multiple of the type's block become a larger type, or F16",
         .source = "src/llama-quant.cpp:372; github.com/ggml-org/llama.cpp/pull/28474"},
        {.id = "llama.cpp.mtp-blocks", .fact = Fact::mtp_layers, .demand = at_least, .number = 1, .when = {When::drafting},
         .why = "there is nothing that could draft: the blocks were dropped, or there were none",
         .source = "src/models/glm4-moe.cpp:34; github.com/ggml-org/llama.cpp/issues/16359"},
        {.id = "llama.cpp.mtp-family", .fact = Fact::family, .demand = named,
         .names = {"glm4_moe", "qwen3_next", "qwen3_5_moe"}, .when = {When::drafting},
         .why = "the converter leaves the blocks of other families out",
         .source = "conversion/deepseek.py:240"},
        {.id = "llama.cpp.mtp-experts", .fact = Fact::mtp_experts, .demand = equal_to, .times = Times::experts,
         .when = {When::drafting, When::mtp_blocks},
         .why = "the blocks' tensors must have expert_count experts too; prune the blocks with the layers",
         .source = "src/models/glm4-moe.cpp:88"},
    },
};

}  // namespace moetrim::runtime_rules
