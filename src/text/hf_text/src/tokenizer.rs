//! A `tokenizer.json`, set up the way transformers sets it up after loading.

use serde_json::Value as Json;
use tokenizers::{AddedToken, Tokenizer};

pub struct TextTokenizer {
    inner: Tokenizer,
}

impl TextTokenizer {
    /// `added_tokens` is a JSON list of `{content, special, lstrip, ...}`: the tokens that
    /// tokenizer_config.json names.
    pub fn new(json: &[u8], added_tokens: &[u8]) -> Result<Self, String> {
        let mut inner =
            Tokenizer::from_bytes(json).map_err(|e| format!("not a usable tokenizer: {e}"))?;
        let added: Json = serde_json::from_slice(added_tokens).map_err(|e| e.to_string())?;
        // A stored truncation or padding is a training setting; transformers switches both
        // off unless a call asks for them.
        inner.with_truncation(None).map_err(|e| e.to_string())?;
        inner.with_padding(None);
        add_missing_tokens(&mut inner, &added)?;
        Ok(Self { inner })
    }

    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, String> {
        let encoding = self
            .inner
            .encode_fast(text, add_special_tokens)
            .map_err(|e| format!("the tokenizer failed: {e}"))?;
        Ok(encoding.get_ids().to_vec())
    }

    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, String> {
        self.inner
            .decode(ids, skip_special_tokens)
            .map_err(|e| format!("the tokenizer failed to decode: {e}"))
    }

    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }
}

fn flag(token: &Json, name: &str, default: bool) -> bool {
    token[name].as_bool().unwrap_or(default)
}

/// Adds the named tokens that `tokenizer.json` does not list. Those it lists keep its flags.
fn add_missing_tokens(tokenizer: &mut Tokenizer, tokens: &Json) -> Result<(), String> {
    for token in tokens.as_array().into_iter().flatten() {
        let Some(content) = token["content"].as_str() else {
            return Err("an added token has no \"content\"".into());
        };
        if tokenizer.get_added_vocabulary().get_vocab().contains_key(content) {
            continue;
        }
        let special = flag(token, "special", false);
        let added = AddedToken::from(content, special)
            .single_word(flag(token, "single_word", false))
            .lstrip(flag(token, "lstrip", false))
            .rstrip(flag(token, "rstrip", false))
            .normalized(flag(token, "normalized", !special));
        tokenizer.add_tokens([added]).map_err(|e| format!("added token {content:?}: {e}"))?;
    }
    Ok(())
}
