import asyncio, json, ssl, sys, time, uuid

import nats


async def call(url, ca, cert, key, me, endpoint, target, request, encoding="json", timeout=5.0):
    """Asks `endpoint` (service.class.verb) at `target` (a host, or "_"); returns the reply."""
    service = endpoint.split(".")[0]
    responder = f"s-{service}" if target == "_" else f"h-{target}-{service}"
    tls = ssl.create_default_context(cafile=ca)
    tls.load_cert_chain(cert, key)
    connection = await nats.connect(
        url,
        tls=tls,
        tls_handshake_first=True,
        inbox_prefix=f"_INBOX.{me}.{responder}".encode(),
    )
    if encoding == "json":
        pack, unpack = lambda value: json.dumps(value).encode(), json.loads
    else:
        import msgpack

        pack, unpack = msgpack.packb, msgpack.unpackb
    try:
        reply = await connection.request(
            f"canopy.v1.rpc.{endpoint}.{target}.{me}",
            pack(request),
            timeout=timeout,
            headers={
                "Content-Type": f"application/{encoding}",
                "Canopy-Request-Id": uuid.uuid4().hex,
                "Canopy-Deadline": str(int((time.time() + timeout) * 1000)),
            },
        )
    finally:
        await connection.close()
    value = unpack(reply.data)
    if "Nats-Service-Error-Code" in (reply.headers or {}):
        raise RuntimeError(f"{value['code']}: {value['message']}")
    return value


if __name__ == "__main__":
    *words, request, encoding = sys.argv[1:]
    print(json.dumps(asyncio.run(call(*words, json.loads(request), encoding))))
