//! Whatever text is given as an endpoint: it is refused, or it is shown as what is read as the same again.

#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use mllp_client::{Client, Delivery, Endpoint, ErrorKind};

fuzz_target!(|text: &str| {
    let endpoint: Endpoint = match text.parse() {
        Ok(endpoint) => endpoint,
        Err(error) => {
            let error: mllp_client::Error = error;
            assert!(matches!(error.kind(), ErrorKind::Config(_)) && error.delivery() == Delivery::NotSent);
            assert!(Client::new(text).is_err());
            return;
        }
    };
    let shown = endpoint.to_string();
    assert!(shown.parse::<Endpoint>().is_ok_and(|again| again == endpoint), "{shown}");
    assert_eq!(shown.starts_with("mllps://"), endpoint.is_tls());
    assert!(shown.ends_with(&format!(":{}", endpoint.port())) && endpoint.port() > 0);
    assert!(!endpoint.host().is_empty() && text.contains(endpoint.host()));
    let address = endpoint.host().split('%').next().unwrap().parse::<IpAddr>();
    assert_eq!(endpoint.host().contains(':'), address.is_ok_and(|address| address.is_ipv6()));
    assert!(endpoint.host().contains(':') || !endpoint.host().contains('%'));
});
