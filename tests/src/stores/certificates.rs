//! Certificates for one test, by openssl.

use std::path::Path;

/// A CA, one certificate for the server and one for the client, and a CA that signed nothing.
pub fn make(folder: &Path) {
    let script = r#"set -e
        ec="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
        for ca in ca other-ca; do openssl req -x509 $ec -subj "/CN=$ca" -keyout $ca.key -out $ca.crt; done
        for name in server client; do
            openssl req $ec -subj "/CN=$name" -keyout $name.key -out $name.csr
            printf 'subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n' >$name.ext
            openssl x509 -req -in $name.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile $name.ext -out $name.crt
        done"#;
    let made = std::process::Command::new("sh").args(["-c", script]).current_dir(folder).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}
