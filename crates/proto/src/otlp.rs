//! Spans as OpenTelemetry's protocol carries them: the messages of a trace's
//! export, with the names and numbers that the protocol gives them, as far as
//! nodes fill them in.

use prost::bytes::Bytes;
use tonic::Status;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;

/// Where a collector takes them.
const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// `ExportTraceServiceRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Export {
    /// By whom they are.
    #[prost(message, repeated, tag = "1")]
    pub resources: Vec<ResourceSpans>,
}

/// Spans of one resource: a node.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResourceSpans {
    /// The node.
    #[prost(message, optional, tag = "1")]
    pub resource: Option<Resource>,
    /// Its spans.
    #[prost(message, repeated, tag = "2")]
    pub scopes: Vec<ScopeSpans>,
}

/// What a node is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Resource {
    /// In words.
    #[prost(message, repeated, tag = "1")]
    pub attributes: Vec<KeyValue>,
}

/// Spans of one part of a program.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ScopeSpans {
    /// The part.
    #[prost(message, optional, tag = "1")]
    pub scope: Option<Scope>,
    /// Its spans.
    #[prost(message, repeated, tag = "2")]
    pub spans: Vec<Span>,
}

/// A part of a program.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Scope {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its version.
    #[prost(string, tag = "2")]
    pub version: String,
}

/// What took some time.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Span {
    /// 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub trace_id: Bytes,
    /// 8 bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub span_id: Bytes,
    /// 8 bytes; empty for the first.
    #[prost(bytes = "bytes", tag = "4")]
    pub parent_span_id: Bytes,
    /// What it was.
    #[prost(string, tag = "5")]
    pub name: String,
    /// On which side of a call.
    #[prost(enumeration = "Kind", tag = "6")]
    pub kind: i32,
    /// Nanoseconds since 1970.
    #[prost(fixed64, tag = "7")]
    pub start_ns: u64,
    /// Nanoseconds since 1970.
    #[prost(fixed64, tag = "8")]
    pub end_ns: u64,
    /// What else is known of it.
    #[prost(message, repeated, tag = "9")]
    pub attributes: Vec<KeyValue>,
    /// How it went.
    #[prost(message, optional, tag = "15")]
    pub status: Option<SpanStatus>,
    /// Those of the trace's context.
    #[prost(fixed32, tag = "16")]
    pub flags: u32,
}

/// On which side of a call a span is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum Kind {
    /// Nobody says.
    Unspecified = 0,
    /// Within one node.
    Internal = 1,
    /// Who is called.
    Server = 2,
    /// Who calls.
    Client = 3,
}

/// How a span went.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SpanStatus {
    /// What went wrong.
    #[prost(string, tag = "2")]
    pub message: String,
    /// 0: as it went; 1: well; 2: it failed.
    #[prost(int32, tag = "3")]
    pub code: i32,
}

/// One thing that is known.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KeyValue {
    /// Of what.
    #[prost(string, tag = "1")]
    pub key: String,
    /// What.
    #[prost(message, optional, tag = "2")]
    pub value: Option<AnyValue>,
}

/// A value of some kind.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AnyValue {
    /// The value.
    #[prost(oneof = "Value", tags = "1, 2, 3, 4")]
    pub value: Option<Value>,
}

/// Kinds of values.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Value {
    /// Text.
    #[prost(string, tag = "1")]
    Text(String),
    /// Yes or no.
    #[prost(bool, tag = "2")]
    Bool(bool),
    /// A whole number.
    #[prost(int64, tag = "3")]
    Int(i64),
    /// Any number.
    #[prost(double, tag = "4")]
    Float(f64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<bool> for Value {
    fn from(yes: bool) -> Self {
        Self::Bool(yes)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Int(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

/// `ExportTraceServiceResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Exported {
    /// What wasn't taken.
    #[prost(message, optional, tag = "1")]
    pub partial_success: Option<PartialSuccess>,
}

/// What a collector didn't take.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PartialSuccess {
    /// How many.
    #[prost(int64, tag = "1")]
    pub rejected_spans: i64,
    /// Why.
    #[prost(string, tag = "2")]
    pub error_message: String,
}

/// Something known, by its name.
#[must_use]
pub fn known(key: &str, value: impl Into<Value>) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value.into()) }) }
}

/// Gives spans to a collector; how many it didn't take.
///
/// # Errors
/// When it can't be reached, or takes none.
pub async fn export(collector: &Channel, spans: Export) -> Result<u64, Status> {
    let mut client = tonic::client::Grpc::new(collector.clone());
    client.ready().await.map_err(|e| Status::unavailable(format!("the collector can't be reached: {e}")))?;
    let codec = tonic_prost::ProstCodec::<Export, Exported>::default();
    let path = PathAndQuery::from_static(EXPORT);
    let exported = client.unary(tonic::Request::new(spans), path, codec).await?.into_inner();
    let rejected = exported.partial_success.map_or(0, |partial| partial.rejected_spans);
    Ok(u64::try_from(rejected).unwrap_or(0))
}
