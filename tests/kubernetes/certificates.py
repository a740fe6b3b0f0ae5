"""Certificates of a cluster, made with openssl."""

import pathlib
import subprocess


def openssl(*words):
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


class Authority:
    """A certificate authority with its folder. Certificates are valid for two days: no laboratory lives longer."""

    def __init__(self, folder, name="lab"):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.certificate, self.key = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        openssl("req", "-x509", *curve, "-days", 2, "-subj", f"/CN={name}", "-keyout", self.key, "-out", self.certificate)

    def issue(self, name, common_name, groups=(), names=()):
        """Issues a certificate for a client and a server at once; returns certificate and key."""
        certificate, key, request = (self.folder / f"{name}.{end}" for end in ("crt", "key", "csr"))
        subject = "".join(f"/O={group}" for group in groups) + f"/CN={common_name}"
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        openssl("req", *curve, "-subj", subject, "-keyout", key, "-out", request)
        extensions = self.folder / f"{name}.ext"
        lines = ["extendedKeyUsage=serverAuth,clientAuth"]
        if names:
            lines.append("subjectAltName=" + ",".join(f"{'IP' if one[0].isdigit() else 'DNS'}:{one}" for one in names))
        extensions.write_text("\n".join(lines) + "\n")
        signed = ("-CA", self.certificate, "-CAkey", self.key, "-CAcreateserial", "-days", 2, "-extfile", extensions)
        openssl("x509", "-req", "-in", request, *signed, "-out", certificate)
        request.unlink()
        extensions.unlink()
        return certificate, key
