"""Writes onnx-defaults.txt: the defaults that ONNX gives attributes of its own
operators, by version of the operator set. Needs the Python package onnx.

    python onnx-defaults.py > onnx-defaults.txt
"""

from collections import defaultdict

from onnx import AttributeProto, defs

KINDS = {AttributeProto.INT: "i", AttributeProto.FLOAT: "f", AttributeProto.STRING: "s"}


def rows():
    versions = defaultdict(list)
    for schema in defs.get_all_schemas_with_history():
        if schema.domain == "":
            versions[schema.name].append(schema)
    for name in sorted(versions):
        schemas = sorted(versions[name], key=lambda s: s.since_version)
        for schema, following in zip(schemas, [*schemas[1:], None]):
            until = following.since_version if following else 1000
            for attribute, kind in sorted(schema.attributes.items()):
                default = kind.default_value
                if default.name and default.type in KINDS and until > 7:
                    value = {"i": default.i, "f": default.f, "s": default.s.decode()}[KINDS[default.type]]
                    yield name, attribute, schema.since_version, until, KINDS[default.type], value


print(f"# onnx {__import__('onnx').__version__}: operator, attribute, first operator set, first set without, kind, value")
for row in rows():
    print(*row)
