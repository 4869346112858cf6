"""Bytes of bsdiff's patches: `python bsdiff.py OLD NEW [OLD NEW ..]`, with
bsdiff4."""

import sys
from pathlib import Path

import bsdiff4

files = [Path(name).read_bytes() for name in sys.argv[1:]]
for old, new in zip(files[::2], files[1::2]):
    print(len(bsdiff4.diff(old, new)), flush=True)
