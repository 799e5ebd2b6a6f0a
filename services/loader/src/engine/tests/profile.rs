//! Run times on request.

use super::world::*;
use canopy_api::{Code, wire::ProfileRequest};

#[test]
fn run_times_end_with_their_time_with_a_word_and_with_the_loader() {
    let world = World::new();
    let engine = world.start();
    let ask = |seconds| engine.profile(&ProfileRequest { seconds });
    assert!(ask(30).unwrap().until.is_some());
    assert_eq!(world.kernel.takes_times(), 1);
    // Asked for again it goes on, and a shorter time cuts nobody short.
    wait(20);
    ask(30).unwrap();
    ask(1).unwrap();
    engine.tick();
    assert_eq!(world.kernel.takes_times(), 1);
    wait(29);
    engine.tick();
    assert_eq!(world.kernel.takes_times(), 1);
    wait(1);
    engine.tick();
    assert_eq!(world.kernel.takes_times(), 0, "the time is over");

    ask(300).unwrap();
    assert_eq!(ask(0).unwrap().until, None);
    assert_eq!(world.kernel.takes_times(), 0, "somebody ended it");

    let error = ask(301).unwrap_err().into_api();
    assert_eq!((error.code, error.path.as_str()), (Code::Invalid, "seconds"));
    assert_eq!(world.kernel.takes_times(), 0);

    ask(300).unwrap();
    drop(engine);
    assert_eq!(world.kernel.takes_times(), 0, "nobody is left to want it");
}

#[test]
fn a_clock_that_is_set_back_leaves_nothing_on() {
    let world = World::new();
    let engine = world.start();
    engine.profile(&ProfileRequest { seconds: 300 }).unwrap();
    set_back(3600);
    engine.tick();
    assert_eq!(world.kernel.takes_times(), 0);
}
