//! JSON whose texts are wiped, also if its reading breaks off.

use std::fmt;

use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use zeroize::{Zeroize, Zeroizing};

/// A JSON value with its texts in memory that is wiped. A [`Value`] that is only half built, since
/// the rest of it is no JSON, leaves the tokens in it behind.
pub(super) enum WipedJson {
    Text(Zeroizing<String>),
    List(Vec<Self>),
    Object(Vec<(String, Self)>),
    /// `null`, a number, true or false.
    Other(Value),
}

impl WipedJson {
    /// Makes a `Value` of it, each text changed by `change`.
    pub(super) fn into_value(self, change: &impl Fn(&mut String)) -> Value {
        match self {
            Self::Text(mut text) => {
                change(&mut text);
                Value::String(std::mem::take(&mut *text))
            }
            Self::List(values) => values.into_iter().map(|it| it.into_value(change)).collect(),
            Self::Object(fields) => {
                let mut object = Map::with_capacity(fields.len());
                for (name, value) in fields {
                    // The last of several counts.
                    object.insert(name, value.into_value(change)).as_mut().map(wipe);
                }
                Value::Object(object)
            }
            Self::Other(value) => value,
        }
    }
}

/// Wipes all texts of a value.
pub(super) fn wipe(json: &mut Value) {
    match json {
        Value::String(text) => text.zeroize(),
        Value::Array(values) => values.iter_mut().for_each(wipe),
        Value::Object(fields) => fields.values_mut().for_each(wipe),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

impl<'de> Deserialize<'de> for WipedJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = WipedJson;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_str<E>(self, text: &str) -> Result<WipedJson, E> {
        Ok(WipedJson::Text(Zeroizing::new(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<WipedJson, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = sequence.next_element()? {
            values.push(value);
        }
        Ok(WipedJson::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WipedJson, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(WipedJson::Object(fields))
    }

    fn visit_unit<E>(self) -> Result<WipedJson, E> {
        Ok(WipedJson::Other(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<WipedJson, E> {
        Ok(WipedJson::Other(value.into()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<WipedJson, E> {
        Ok(WipedJson::Other(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<WipedJson, E> {
        Ok(WipedJson::Other(number.into()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<WipedJson, E> {
        Ok(WipedJson::Other(number.into()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn value_is_what_serde_reads(json in r#"([{}\[\]:,"a-c0-9.e-]|null|true){0,24}"#) {
            let read = serde_json::from_str::<WipedJson>(&json).ok();
            let read = read.map(|it| it.into_value(&|_| {}));
            prop_assert_eq!(read, serde_json::from_str::<Value>(&json).ok());
        }
    }

    #[test]
    fn every_text_is_wiped_however_deep() {
        let mut json =
            serde_json::json!([["x"], {"a": "y", "b": {"c": ["z"]}}, "w", 1, true, null]);
        wipe(&mut json);
        let empty = serde_json::json!([[""], {"a": "", "b": {"c": [""]}}, "", 1, true, null]);
        assert_eq!(json, empty);
    }

    #[test]
    fn last_of_repeated_fields_is_kept() {
        let json = r#"{"a":"x","b":[1,-2,2.5,null,false,{"c":"y"}],"a":"z"}"#;
        let read = serde_json::from_str::<WipedJson>(json).map(|it| it.into_value(&|_| {}));
        assert_eq!(read.ok(), serde_json::from_str::<Value>(json).ok());
    }
}
