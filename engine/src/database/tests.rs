use super::*;
use crate::model::{Container, ContainerConfig, Event, EventKind, State, Status, now};

fn container(id: char, name: &str) -> Container {
    Container {
        id: std::iter::repeat_n(id, 64).collect(),
        name: name.to_owned(),
        created: now(),
        config: ContainerConfig { auto_remove: true, ..ContainerConfig::default() },
        state: State::default(),
    }
}

#[test]
fn containers_are_found_by_id_name_and_beginning() {
    let directory = tempfile::tempdir().unwrap();
    let db = Database::open(&directory.path().join("state.db")).unwrap();
    let (a, b) = (container('a', "first"), container('b', "second"));
    db.insert_container(&a).unwrap();
    db.insert_container(&b).unwrap();
    let mut twin = container('a', "third");
    twin.id.replace_range(63.., "b");
    db.insert_container(&twin).unwrap();
    for name in ["first", "/first", &a.id] {
        assert_eq!(db.container(name).unwrap(), a, "{name}");
    }
    assert_eq!(db.container("bbb").unwrap(), b);
    assert!(matches!(db.container("aaa"), Err(EngineError::Ambiguous(_))));
    for name in ["", "/", "c", "firs", "%", "a%"] {
        assert!(matches!(db.container(name), Err(EngineError::NoContainer(_))), "{name}");
    }
    let again = Container { name: "first".into(), ..container('c', "") };
    assert!(matches!(db.insert_container(&again), Err(EngineError::NameTaken { id, .. }) if id == a.id));
    assert!(matches!(db.rename_container(&b.id, "first"), Err(EngineError::NameTaken { .. })));
    db.rename_container(&b.id, "other").unwrap();
    assert_eq!(db.container("other").unwrap().id, b.id);
    assert!(db.delete_container(&a.id).unwrap() && !db.delete_container(&a.id).unwrap());
}

#[test]
fn state_and_config_do_not_undo_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let (supervisor, engine) = (Database::open(&path).unwrap(), Database::open(&path).unwrap());
    let a = container('a', "first");
    engine.insert_container(&a).unwrap();
    engine
        .change_config(&a.id, |config| {
            config.limits.memory = Some(1 << 30);
            Ok(())
        })
        .unwrap();
    supervisor.set_state(&a.id, &State { status: Status::Running, ..State::default() }).unwrap();
    let now = engine.container(&a.id).unwrap();
    assert_eq!((now.config.limits.memory, now.state.status), (Some(1 << 30), Status::Running));
    let refused = engine.change_config(&a.id, |config| {
        config.tty = true;
        Err(EngineError::Conflict("no".into()))
    });
    assert!(refused.is_err() && !engine.container(&a.id).unwrap().config.tty);
    assert!(matches!(engine.set_state("x", &State::default()), Err(EngineError::NoContainer(_))));
}

#[test]
fn events_have_an_order_and_do_not_grow_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let db = Database::open(&directory.path().join("state.db")).unwrap();
    let event = |time| Event {
        sequence: 0,
        time,
        kind: EventKind::Container,
        action: "start".into(),
        actor: "a".into(),
        attributes: [("name".to_owned(), "x".to_owned())].into(),
    };
    for time in 0..5000 {
        db.insert_event(&event(time)).unwrap();
    }
    assert_eq!(db.last_event().unwrap(), 5000);
    let (mut after, mut count) = (0, 0);
    loop {
        let batch = db.events(after, 0).unwrap();
        let Some(last) = batch.last() else { break };
        assert!(batch.iter().zip(&batch[1..]).all(|(a, b)| a.sequence < b.sequence));
        (after, count) = (last.sequence, count + batch.len());
    }
    assert!((4096..4096 + 256 + 1).contains(&count), "{count}");
    assert_eq!(db.events(0, 4990).unwrap().len(), 10);
}

#[test]
fn an_unknown_layout_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    Database::open(&path).unwrap().lock().pragma_update(None, "user_version", 99).unwrap();
    let error = Database::open(&path).unwrap_err().to_string();
    assert!(error.contains("layout 99"), "{error}");
    std::fs::write(&path, b"this is no database, whatever its name says").unwrap();
    assert!(Database::open(&path).is_err());
}
