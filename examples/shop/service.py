# service.py
"""A payment service for trying things out: it charges, once for each idempotency key, and tells by
a webhook (https://www.standardwebhooks.com) how that went: `python service.py URL-OF-THE-WEBHOOK`.
"""

import base64
import hmac
import json
import os
import ssl
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = os.environ["PAY_KEY"]
HOOK_SECRET = base64.b64decode(os.environ["PAY_HOOK"].removeprefix("whsec_"))
charges: dict[str, dict[str, str]] = {}  # by idempotency key
lock = threading.Lock()


def tell(charge: dict[str, str]) -> None:
    """Until somebody says that they heard it."""
    body = json.dumps({"order": charge["order"], "charge": charge["id"], "settled": True}).encode()
    for _ in range(600):
        now = str(int(time.time()))
        signed = b".".join([f"evt_{charge['id']}".encode(), now.encode(), body])
        signature = base64.b64encode(hmac.digest(HOOK_SECRET, signed, "sha256")).decode()
        headers = {
            "Content-Type": "application/json",
            "webhook-id": f"evt_{charge['id']}",
            "webhook-timestamp": now,
            "webhook-signature": f"v1,{signature}",
        }
        try:
            urllib.request.urlopen(urllib.request.Request(sys.argv[1], body, headers), timeout=5)
            return
        except OSError:
            time.sleep(0.5)


class Service(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """How often each order was charged."""
        with lock:
            orders = [charge["order"] for charge in charges.values()]
        self.answer(200, {order: orders.count(order) for order in orders})

    def do_POST(self) -> None:
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] != f"Bearer {KEY}":
            self.answer(401, {"error": "who are you?"})
            return
        with lock:
            key = self.headers["Idempotency-Key"]
            is_new = key not in charges
            charge = charges.setdefault(key, {"id": f"ch_{len(charges) + 1}", **given})
        if is_new:
            threading.Thread(target=tell, args=[charge], daemon=True).start()
        self.answer(201, charge)

    def answer(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("pay.crt", "pay.key")
    server = ThreadingHTTPServer(("127.0.0.1", 4242), Service)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()
