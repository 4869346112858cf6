"""Writes keys.json: keys of every kind that is verified, with signatures.

python keys.py, with securesystemslib[crypto] 1.6 from PyPI.
"""

import json
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from securesystemslib.signer import CryptoSigner, SSlibKey

MESSAGE = "a model's digest"


def case(name, private, scheme, signs):
    public = SSlibKey.from_crypto(private.public_key(), scheme=scheme)
    signature = CryptoSigner(private, public).sign(MESSAGE.encode()).signature
    key = {"name": name, "id": public.keyid, "public": public.to_dict(), "message": MESSAGE, "signature": signature}
    if signs:
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        key["private"] = pem.decode()
    return key


def main():
    big = rsa.generate_private_key(65537, 2048)
    keys = [
        case("ed25519", ed25519.Ed25519PrivateKey.generate(), None, True),
        case("p256", ec.generate_private_key(ec.SECP256R1()), "ecdsa-sha2-nistp256", True),
        case("p384", ec.generate_private_key(ec.SECP384R1()), "ecdsa-sha2-nistp384", False),
        case("rsa 256", big, "rsassa-pss-sha256", False),
        case("rsa 384", big, "rsassa-pss-sha384", False),
        case("rsa 512", big, "rsassa-pss-sha512", False),
    ]
    Path(__file__).with_name("keys.json").write_text(json.dumps(keys, indent=1) + "\n")


main()
