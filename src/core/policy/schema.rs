//! The JSON Schema of a policy, for editors that complete and check while one types.

/// A JSON Schema (draft 2020-12) of a policy file.
pub const fn schema() -> &'static str {
    include_str!("../../../deploy/policy.schema.json")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::super::file::keys;
    use super::super::settings::{Mechanism, Pickup, WhenDown};
    use super::super::terms::{Action, Login, ThirdParty};
    use super::super::word::Word;
    use super::schema;
    use crate::core::ftp::mode::Mode;

    fn at(pointer: &str) -> Value {
        let schema: Value = serde_json::from_str(schema()).expect("the schema is JSON");
        schema.pointer(pointer).unwrap_or_else(|| panic!("the schema has no {pointer}")).clone()
    }

    fn words_at(pointer: &str) -> BTreeSet<String> {
        let list = at(pointer);
        list.as_array().expect("a list").iter().map(|word| word.as_str().expect("a text").to_owned()).collect()
    }

    fn set<'a>(words: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
        words.into_iter().map(ToOwned::to_owned).collect()
    }

    #[test]
    fn the_schema_knows_the_keys_that_the_parser_knows() {
        for (level, known) in [
            ("", keys::POLICY),
            ("/properties/capture", keys::CAPTURE),
            ("/properties/limits", keys::LIMITS),
            ("/properties/defaults", keys::TERMS),
            ("/properties/rules/items", keys::RULE),
            ("/$defs/commands", keys::COMMANDS),
        ] {
            let properties = at(&format!("{level}/properties"));
            let found = properties.as_object().expect("a mapping").keys().map(String::as_str);
            assert_eq!(set(found), set(known.iter().copied()), "at {level:?}");
            assert_eq!(at(&format!("{level}/additionalProperties")), false, "at {level:?}");
        }
    }

    #[test]
    fn a_rule_may_say_whatever_the_defaults_may() {
        let more = ["name", "clients", "servers", "action"];
        assert_eq!(set(keys::RULE.iter().copied()), set(keys::TERMS.iter().copied().chain(more)));
    }

    #[test]
    fn the_schema_knows_the_words_that_the_parser_knows() {
        fn all<W: Word>() -> BTreeSet<String> {
            set(W::ALL.iter().map(|word| word.word()))
        }
        assert_eq!(words_at("/properties/mechanism/enum"), all::<Mechanism>());
        assert_eq!(words_at("/properties/pickup/enum"), all::<Pickup>());
        assert_eq!(words_at("/properties/capture/properties/when_down/enum"), all::<WhenDown>());
        assert_eq!(words_at("/properties/rules/items/properties/action/enum"), all::<Action>());
        assert_eq!(words_at("/$defs/third_party/enum"), all::<ThirdParty>());
        assert_eq!(words_at("/$defs/login/enum"), all::<Login>());
        assert_eq!(words_at("/$defs/modes/items/enum"), set(Mode::ALL.map(Mode::command)));
    }
}
