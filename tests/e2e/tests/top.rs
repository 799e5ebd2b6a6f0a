//! What chains do now, and what it costs.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests: a failure is the message")]

use canopy_e2e::{BLOCKED, World};
use serde_json::Value;

#[test]
fn top_tells_rates_and_on_request_the_time_of_a_packet() {
    let world = World::start().unwrap();
    world.apply(&World::firewall()).unwrap();
    let flood = world.flood(BLOCKED).unwrap();
    let look = |arguments: &[&str]| -> Value {
        let line = [&["top", "--once", "-o", "json"], arguments].concat();
        world.canopy_as("operator", &line).unwrap().json().unwrap()
    };
    let plain = look(&[]);
    let chain = &plain["chains"][0];
    assert!(chain["packets"].as_f64().unwrap() > 0.0, "{plain}");
    assert_eq!(chain["verdicts"]["drop"], chain["packets"], "{plain}");
    assert_eq!(chain["programs"][0]["name"], "blocklist");
    assert_eq!(chain["programs"][1]["packets"], 0.0, "none comes that far");
    assert_eq!(chain.get("ns_per_packet"), None, "{plain}");

    let timed = look(&["--profile"]);
    let chain = &timed["chains"][0];
    let ns = chain["ns_per_packet"].as_f64().unwrap();
    assert!(ns > 0.0 && ns < 1e6, "{timed}");
    assert_eq!(chain["share"], 1.0, "{timed}");
    flood.stop().unwrap();
    world.end().unwrap();
}
