// Which sources an object was built from: one hash over the files that go into it. Included by `cargo xtask build-ebpf`,
// which writes it beside the object, and by the proxy's build script, which refuses an object built from other sources.

/// FNV-1a, 64 bits, over every path and content under `proxy-ebpf/src`, and its `Cargo.toml`. `proxy_ebpf` is that folder.
pub fn source_hash(proxy_ebpf: &std::path::Path) -> std::io::Result<u64> {
    let mut files = vec![proxy_ebpf.join("Cargo.toml")];
    let mut folders = vec![proxy_ebpf.join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if entry.path().extension().is_some_and(|e| e == "rs") {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut eat = |bytes: &[u8]| {
        for byte in bytes.iter().chain(&[0]) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for file in files {
        let name = file.strip_prefix(proxy_ebpf).unwrap_or(&file);
        eat(name.as_os_str().as_encoded_bytes());
        eat(&std::fs::read(&file)?);
    }
    Ok(hash)
}
