//! A tonic client against a member of a cluster: what a Rust program would do, on another HTTP/2 implementation than
//! the engine's. Exits with 0 if every step holds, else with the first that does not.
//!
//!     raftkv-tonic-conformance http://127.0.0.1:2379

use std::error::Error;
use std::time::{Duration, Instant};

use prost::Message;
use tokio_stream::StreamExt;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, Message)]
struct Header {
    #[prost(uint64, tag = "1")]
    cluster_id: u64,
    #[prost(int64, tag = "3")]
    revision: i64,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(int64, tag = "3")]
    mod_revision: i64,
    #[prost(bytes = "vec", tag = "5")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct PutResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
}

#[derive(Clone, PartialEq, Message)]
struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    range_end: Vec<u8>,
    #[prost(int64, tag = "4")]
    revision: i64,
}

#[derive(Clone, PartialEq, Message)]
struct RangeResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
    #[prost(int64, tag = "4")]
    count: i64,
}

#[derive(Clone, PartialEq, Message)]
struct WatchCreateRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct WatchRequest {
    #[prost(message, optional, tag = "1")]
    create: Option<WatchCreateRequest>,
}

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(message, optional, tag = "2")]
    kv: Option<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct WatchResponse {
    #[prost(bool, tag = "3")]
    created: bool,
    #[prost(message, repeated, tag = "11")]
    events: Vec<Event>,
}

type Outcome = Result<(), Box<dyn Error>>;

async fn call<Q, A>(channel: &Channel, path: &'static str, request: Request<Q>) -> Result<A, Status>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    let mut client = Grpc::new(channel.clone()).max_decoding_message_size(64 << 20);
    client.ready().await.map_err(|e| Status::unknown(e.to_string()))?;
    let path = PathAndQuery::from_static(path);
    Ok(client
        .unary(request, path, ProstCodec::<Q, A>::default())
        .await?
        .into_inner())
}

async fn put(channel: &Channel, key: &str, value: Vec<u8>) -> Result<PutResponse, Status> {
    let request = PutRequest { key: key.into(), value };
    call(channel, "/etcdserverpb.KV/Put", Request::new(request)).await
}

async fn range(channel: &Channel, key: &str, range_end: &str, revision: i64) -> Result<RangeResponse, Status> {
    let request = RangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        revision,
    };
    call(channel, "/etcdserverpb.KV/Range", Request::new(request)).await
}

fn expect(holds: bool, what: &str) -> Outcome {
    if holds {
        println!("ok: {what}");
        return Ok(());
    }
    Err(format!("does not hold: {what}").into())
}

async fn unary(channel: &Channel) -> Outcome {
    let first = put(channel, "tonic/a", b"1".to_vec())
        .await?
        .header
        .unwrap_or_default()
        .revision;
    let answer = range(channel, "tonic/a", "", 0).await?;
    expect(answer.count == 1 && answer.kvs[0].value == b"1", "a put is read back")?;
    expect(answer.kvs[0].mod_revision == first, "revisions agree")
}

async fn errors(channel: &Channel) -> Outcome {
    let status = put(channel, "", Vec::new()).await.expect_err("an empty key");
    expect(
        status.code() == Code::InvalidArgument && status.message() == "etcdserver: key is not provided",
        "an empty key has etcd's code and text",
    )?;
    let status = range(channel, "tonic/a", "", 1 << 40)
        .await
        .expect_err("a future revision");
    expect(status.code() == Code::OutOfRange, "a future revision is OUT_OF_RANGE")?;
    let unknown: Result<PutResponse, _> =
        call(channel, "/etcdserverpb.KV/NoSuch", Request::new(PutRequest::default())).await;
    expect(
        unknown.is_err_and(|s| s.code() == Code::Unimplemented),
        "an unknown method is UNIMPLEMENTED",
    )
}

async fn large_messages(channel: &Channel) -> Outcome {
    for i in 0..8 {
        put(channel, &format!("tonic/large/{i}"), vec![b'x'; 1 << 20]).await?;
    }
    let answer = range(channel, "tonic/large/", "tonic/large0", 0).await?;
    let bytes: usize = answer.kvs.iter().map(|kv| kv.value.len()).sum();
    expect(bytes == 8 << 20, "eight values of 1 MiB come back in one answer")
}

async fn many_at_once(channel: &Channel) -> Outcome {
    let tasks: Vec<_> = (0..500)
        .map(|i| {
            let channel = channel.clone();
            tokio::spawn(async move {
                put(&channel, &format!("tonic/many/{i:03}"), vec![b'y'; 256])
                    .await
                    .is_ok()
            })
        })
        .collect();
    let mut done = 0;
    for task in tasks {
        done += usize::from(task.await?);
    }
    let answer = range(channel, "tonic/many/", "tonic/many0", 0).await?;
    expect(done == 500 && answer.count == 500, "500 puts at once on one connection")
}

async fn watch(channel: &Channel) -> Outcome {
    let create = WatchCreateRequest {
        key: b"tonic/watched".to_vec(),
    };
    let requests = tokio_stream::iter([WatchRequest { create: Some(create) }]).chain(tokio_stream::pending());
    let mut client = Grpc::new(channel.clone());
    client.ready().await?;
    let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
    let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
    let mut answers = client
        .streaming(Request::new(requests), path, codec)
        .await?
        .into_inner();
    let created = answers.message().await?.ok_or("the watch ended")?;
    expect(created.created, "a watch is created")?;
    put(channel, "tonic/watched", b"now".to_vec()).await?;
    let answer = answers.message().await?.ok_or("the watch ended")?;
    let kv = answer.events.first().and_then(|e| e.kv.clone()).unwrap_or_default();
    expect(kv.value == b"now", "the event arrives")
}

async fn deadline(channel: &Channel) -> Outcome {
    // A watch that nobody feeds never answers after `created`; its deadline ends it.
    let requests = tokio_stream::pending::<WatchRequest>();
    let mut request = Request::new(requests);
    request.set_timeout(Duration::from_millis(300));
    let mut client = Grpc::new(channel.clone());
    client.ready().await?;
    let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
    let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
    let start = Instant::now();
    let ended = match client.streaming(request, path, codec).await {
        Ok(answers) => answers.into_inner().message().await.err(),
        Err(status) => Some(status),
    };
    let code = ended.map(|status| status.code());
    expect(
        matches!(code, Some(Code::DeadlineExceeded | Code::Cancelled)) && start.elapsed() < Duration::from_secs(10),
        "a deadline ends a quiet stream",
    )
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome {
    let address = std::env::args()
        .nth(1)
        .ok_or("usage: raftkv-tonic-conformance http://HOST:PORT")?;
    let endpoint = Endpoint::from_shared(address)?.http2_keep_alive_interval(Duration::from_secs(5));
    let channel = endpoint.keep_alive_while_idle(true).connect().await?;
    unary(&channel).await?;
    errors(&channel).await?;
    large_messages(&channel).await?;
    many_at_once(&channel).await?;
    watch(&channel).await?;
    deadline(&channel).await?;
    tokio::time::sleep(Duration::from_secs(12)).await;
    expect(
        put(&channel, "tonic/b", b"2".to_vec()).await.is_ok(),
        "keepalive pings every 5 s keep the connection",
    )
}
