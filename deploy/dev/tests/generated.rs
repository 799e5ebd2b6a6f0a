//! The generated documents are what they would be if they were generated now.

use xtask::docs;

#[test]
fn generated_documents_are_up_to_date() {
    docs::check().unwrap();
}

/// Alerts and dashboards name only metrics that exist.
#[test]
fn alerts_and_dashboards_name_metrics_that_exist() {
    let known = docs::metric_names().unwrap();
    let deploy = xtask::paths::workspace().join("deploy");
    let mut seen = 0;
    for file in ["prometheus/rules.yml", "grafana/dashboards/canopy.json"] {
        let text = std::fs::read_to_string(deploy.join(file)).unwrap();
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for word in words.filter(|word| word.starts_with("canopy_")) {
            let name = word.strip_suffix("_bucket").unwrap_or(word);
            assert!(known.iter().any(|metric| metric == name), "{file}: no metric {word}");
            seen += 1;
        }
    }
    assert!(seen > 10, "only {seen} names were found");
}

/// Prometheus is told the ports that `cargo xtask up` gives the services.
#[test]
fn prometheus_scrapes_the_development_stack() {
    let file = xtask::paths::workspace().join("deploy/prometheus/prometheus.yml");
    let text = std::fs::read_to_string(file).unwrap();
    for (port, service) in (xtask::dev::ADMIN_PORT..).zip(canopy_api::endpoint::Service::ALL) {
        let target = format!("127.0.0.1:{port}\"]\n        labels: {{ service: {service}");
        assert!(text.contains(&target), "{target} is missing");
    }
}
