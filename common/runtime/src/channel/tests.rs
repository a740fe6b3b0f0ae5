use super::*;
use crate::tls::testing::Authority;

#[test]
fn an_address_has_to_fit() {
    let ca = Authority::new("ca");
    let dir = tempfile::tempdir().expect("a folder");
    let tls = ClientTls::load(&ca.issue("one", &[]).write(dir.path(), &ca)).expect("good files");
    let with = |address: &str| Target::new(address, tls.as_ref()).map(drop);
    let without = |address: &str| Target::new(address, None).map(drop);
    assert_eq!(with("https://h:1"), Ok(()));
    assert_eq!(with("https://[::1]:1"), Ok(()));
    assert_eq!(without("http://h:1"), Ok(()));
    assert_eq!(with("http://h:1"), Err(AddressError::Plain("http://h:1".into())));
    assert_eq!(without("https://h:1"), Err(AddressError::NoTls("https://h:1".into())));
    for address in ["unix:/run/rug/s", "unix:///run/rug/s", "unix:s"] {
        assert_eq!((with(address), without(address)), (Ok(()), Ok(())), "{address}");
    }
    for address in ["h", "h:1", "ftp://h:1", "", "http://", "https:// h", "unix:", "unix://", "unix:a\0b"]
        .into_iter()
        .chain(["http://h:99999", "http://h:0", "http://h:", "http://[::1]:70000", "https://h:1/x", "http://h:1?x=y"])
    {
        assert!(matches!(with(address), Err(AddressError::Malformed)), "{address}");
        assert!(Target::check(address).is_err(), "{address}");
    }
    for address in ["https://rug:hush@h:1", "rug:hush@h", "hush h", "hush"] {
        for error in
            [with(address), without(address), Target::check(address)].map(|checked| checked.expect_err(address))
        {
            assert!(!error.to_string().contains("hush") && !format!("{error:?}").contains("hush"), "{error}");
        }
    }
    assert!(["https://h:1", "http://h:1", "unix:s"].iter().all(|address| Target::check(address).is_ok()));
}
