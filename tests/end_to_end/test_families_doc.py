"""docs/families.md says what the program knows."""
import sys

import models
from program import ROOT, moetrim, moetrim_json

sys.path.insert(0, str(ROOT / "scripts"))
import make_families_doc  # noqa: E402

FAMILIES = moetrim_json("list", "families")["families"]


def test_the_committed_page_is_what_the_script_makes():
    committed = (ROOT / "docs/families.md").read_text()
    assert committed == make_families_doc.document(FAMILIES), "run scripts/make_families_doc.py"


def test_the_text_names_every_family():
    text = moetrim("list", "families").stdout
    for family in FAMILIES:
        assert family["name"] in text and family["covers"] in text


def test_every_family_has_a_reference_model():
    """The page says that all of them are compared."""
    made = {getattr(models.config_of(name), "model_type", "PanguProMoE") for name in models.FAMILIES}
    assert {family["name"] for family in FAMILIES} <= made


def test_known_words():
    by_name = {family["name"]: family for family in FAMILIES}
    assert by_name["gpt_oss"]["attention"] == ["grouped-query", "sinks", "sliding window"]
    assert by_name["gpt_oss"]["layouts"] == ["fused transposed", "interleaved"]
    assert by_name["qwen3_next"]["attention"] == ["gated delta net + grouped-query", "qk-norm", "output gate"]
    assert by_name["deepseek_v3"]["attention"] == ["latent (MLA)"]
    assert by_name["llama4"]["router"] == ["sigmoid", "gates never normalised", "gate on input"]
    assert [name for name, family in by_name.items() if family["mtp"]] == ["deepseek_v3", "glm4_moe", "qwen3_5_moe", "qwen3_next"]
