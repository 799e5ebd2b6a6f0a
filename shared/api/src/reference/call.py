import asyncio, json, ssl, sys, time, uuid

import nats


class Canopy:
    """One connection, for requests to any service of any host."""

    @classmethod
    async def connect(cls, url, ca, cert, key, me, token_file=None):
        self = cls()
        self.me, self.waiting, self.responders = me, {}, set()
        tls = ssl.create_default_context(cafile=ca)
        tls.load_cert_chain(cert, key)
        token = open(token_file).read().strip() if token_file else None
        self.nats = await nats.connect(
            url, tls=tls, tls_handshake_first=True, token=token, inbox_prefix=f"_INBOX.{me}".encode()
        )
        return self

    async def answered(self, message):
        future = self.waiting.pop(message.subject, None)
        if future and not future.done():
            future.set_result(message)

    async def call(self, endpoint, target, request, encoding="json", timeout=5.0, request_id=None):
        """Asks `endpoint` (service.class.verb) at `target` (a host, or "_"); returns the reply."""
        if encoding == "json":
            pack, unpack = lambda value: json.dumps(value).encode(), json.loads
        else:
            import msgpack

            pack, unpack = msgpack.packb, msgpack.unpackb
        service = endpoint.split(".")[0]
        responder = f"s-{service}" if target == "_" else f"h-{target}-{service}"
        if responder not in self.responders:
            self.responders.add(responder)
            # Answers of whom we call; others could fill an inbox that hears everybody.
            await self.nats.subscribe(f"_INBOX.{self.me}.{responder}.>", cb=self.answered)
        inbox = f"_INBOX.{self.me}.{responder}.{uuid.uuid4().hex}"
        self.waiting[inbox] = asyncio.get_running_loop().create_future()
        headers = {
            "Content-Type": f"application/{encoding}",
            "Canopy-Request-Id": request_id or uuid.uuid4().hex,
            "Canopy-Deadline": str(int((time.time() + timeout) * 1000)),
            "Canopy-Timeout": str(int(timeout * 1000)),
        }
        subject = f"canopy.v1.rpc.{endpoint}.{target}.{self.me}"
        try:
            await self.nats.publish(subject, pack(request), reply=inbox, headers=headers)
            reply = await asyncio.wait_for(asyncio.shield(self.waiting[inbox]), timeout)
        finally:
            self.waiting.pop(inbox, None)
        headers = reply.headers or {}
        if headers.get("Status") == "503":
            raise nats.errors.NoRespondersError
        value = unpack(reply.data)
        if "Nats-Service-Error-Code" in headers:
            raise RuntimeError(f"{value['code']}: {value['message']} ({value.get('remedy')})")
        return value


async def main(url, ca, cert, key, me, endpoint, target, request, encoding, token_file=None):
    canopy = await Canopy.connect(url, ca, cert, key, me, token_file)
    try:
        print(json.dumps(await canopy.call(endpoint, target, json.loads(request), encoding)))
    finally:
        await canopy.nats.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
