//! Lists and texts that are refused while they are read, as soon as they pass their bound.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Reads a list of at most `MAX` items.
pub(super) fn list<'de, D, T, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Items<T, const MAX: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Items<T, MAX> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MAX} items")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while let Some(item) = items.next_element()? {
                if list.len() == MAX {
                    return Err(A::Error::custom(format!("a list is longer than {MAX} items")));
                }
                list.push(item);
            }
            Ok(list)
        }
    }

    deserializer.deserialize_seq(Items::<T, MAX>(PhantomData))
}

/// Reads a table of at most `MAX` numbers by name.
pub(super) fn numbers<'de, D, const MAX: usize>(deserializer: D) -> Result<BTreeMap<String, u64>, D::Error>
where
    D: Deserializer<'de>,
{
    struct Numbers<const MAX: usize>;

    impl<'de, const MAX: usize> Visitor<'de> for Numbers<MAX> {
        type Value = BTreeMap<String, u64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a table of at most {MAX} numbers")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
            let mut table = BTreeMap::new();
            while let Some((name, number)) = items.next_entry()? {
                if table.len() == MAX {
                    return Err(A::Error::custom(format!("a table is longer than {MAX} items")));
                }
                table.insert(name, number);
            }
            Ok(table)
        }
    }

    deserializer.deserialize_map(Numbers::<MAX>)
}

/// Reads a text of at most `MAX` bytes.
pub(super) fn text<'de, D: Deserializer<'de>, const MAX: usize>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.len() > MAX {
        return Err(D::Error::custom(format!("a text is longer than {MAX} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Both {
        #[serde(deserialize_with = "super::list::<_, _, 3>")]
        list: Vec<u8>,
        #[serde(deserialize_with = "super::text::<_, 4>")]
        text: String,
        #[serde(default, deserialize_with = "super::numbers::<_, 2>")]
        table: std::collections::BTreeMap<String, u64>,
    }

    #[test]
    fn what_is_longer_than_its_bound_is_refused() {
        let parse = |json: &str| serde_json::from_str::<Both>(json).map(|b| (b.list.len(), b.text.len()));
        assert_eq!(parse(r#"{"list":[1,2,3],"text":"abcd"}"#).unwrap(), (3, 4));
        assert!(parse(r#"{"list":[1,2,3,4],"text":""}"#).unwrap_err().to_string().contains("longer than 3"));
        assert!(parse(r#"{"list":[],"text":"abcde"}"#).unwrap_err().to_string().contains("longer than 4"));
        let table = |json: &str| serde_json::from_str::<Both>(json).map(|b| b.table.len());
        assert_eq!(table(r#"{"list":[],"text":"","table":{"a":1,"b":2}}"#).unwrap(), 2);
        assert!(table(r#"{"list":[],"text":"","table":{"a":1,"b":2,"c":3}}"#).is_err());
    }
}
