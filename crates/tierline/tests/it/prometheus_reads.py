"""Reads a node's numbers as Prometheus does: prometheus_reads.py ADDRESS."""
import sys
import urllib.request

from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics

PLAIN, OPEN = "text/plain", "application/openmetrics-text"


def get(accept):
    request = urllib.request.Request(f"http://{sys.argv[1]}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


kind, text = get(PLAIN)
assert kind.startswith("text/plain; version=0.0.4"), kind
plain = list(parser.text_string_to_metric_families(text))
kind, text = get(f"{OPEN};version=1.0.0,{PLAIN};q=0.5")
assert kind.startswith("application/openmetrics-text; version=1.0.0"), kind
strict = list(openmetrics.text_string_to_metric_families(text))


def samples(families):
    return {(s.name, tuple(sorted(s.labels.items()))) for family in families for s in family.samples}


assert samples(plain) == samples(strict) and len(plain) > 10, samples(plain) ^ samples(strict)
for family in strict:
    assert family.name.startswith("tierline_"), family
    assert family.documentation.endswith(".") and family.type in ("counter", "gauge", "histogram"), family
    # Base units, and each in its name.
    assert not family.name.endswith(("_ms", "_ns", "_us", "_mb", "_kb", "_percent")), family
    for unit in ("seconds", "bytes", "bytes_per_second"):
        if family.name.endswith("_" + unit) and not family.name.endswith("_per_" + unit):
            assert family.unit.endswith(unit), family
print(len(strict))
