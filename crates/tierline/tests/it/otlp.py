"""A receiver of spans: prints its address, then every span that it is given, a JSON document a line."""
import json
import threading
from concurrent import futures

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service


def known(attributes):
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}


telling = threading.Lock()


def tell(line):
    # Two threads at once would mix their lines.
    with telling:
        print(line, flush=True)


class Receiver(service.TraceServiceServicer):
    def Export(self, request, context):
        for resource in request.resource_spans:
            node = known(resource.resource.attributes)
            for scope in resource.scope_spans:
                for span in scope.spans:
                    tell(json.dumps({
                        "service": node["service.name"], "node": node["tierline.node"], "name": span.name,
                        "trace": span.trace_id.hex(), "span": span.span_id.hex(), "parent": span.parent_span_id.hex(),
                        "kind": span.kind, "start": span.start_time_unix_nano, "end": span.end_time_unix_nano,
                        "failed": span.status.code == 2, "status": span.status.message, "flags": span.flags,
                        "known": known(span.attributes),
                    }))
        return messages.ExportTraceServiceResponse()


server = grpc.server(futures.ThreadPoolExecutor(2))
service.add_TraceServiceServicer_to_server(Receiver(), server)
print(f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", flush=True)
server.start()
threading.Event().wait()
