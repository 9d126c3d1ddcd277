"""Keys and certificates for one run of the lab."""

import subprocess


def make(folder):
    folder.mkdir()

    def call(command):
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)

    call("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=lab -keyout ca.key -out ca.crt")
    for role in ("server", "client"):
        (folder / f"{role}.ext").write_text(
            f"basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\nextendedKeyUsage={role}Auth\n"
        )
        call(f"openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN={role} -keyout {role}.key -out {role}.csr")
        call(f"openssl x509 -req -in {role}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile {role}.ext -out {role}.crt")
    call("openvpn --genkey secret shared.key")
    call("openvpn --genkey tls-crypt-v2-server v2-server.key")
    call("openvpn --tls-crypt-v2 v2-server.key --genkey tls-crypt-v2-client v2-client.key")
