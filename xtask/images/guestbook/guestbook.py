#!/usr/bin/python3
"""The guestbook's frontend: a page of messages kept in Redis.

Writes go to the leader, reads to the followers. Where those are is asked of DNS, or of the environment when
GET_HOSTS_FROM is `env`. Several sets of names are tried, since the guestbook's versions call them differently.

    /                                               the page
    /guestbook.php?cmd=get&key=messages             {"data": "first,second"}
    /guestbook.php?cmd=set&key=messages&value=TEXT  {"message": "Updated"}
    /lrange/KEY, /rpush/KEY/TEXT, /info, /env       what the version in Go has
    /healthz                                        ok
"""

import html
import http.server
import json
import os
import signal
import socket
import sys
import urllib.parse

LEADERS = ["redis-leader", "redis-master", "redis"]
FOLLOWERS = ["redis-follower", "redis-replica", "redis-slave"]
REDIS_PORT = 6379
TIMEOUT_SECONDS = 3
MAX_REPLY_BYTES = 1 << 20
MAX_BODY_BYTES = 64 << 10

PAGE = """<!DOCTYPE html>
<html>
<head><meta charset="utf-8"><title>Guestbook</title></head>
<body>
<h1>Guestbook</h1>
<form method="post" action="/">
<input name="message" placeholder="Message" autofocus>
<button type="submit">Submit</button>
</form>
<ul id="messages">
{messages}
</ul>
<p><small>served by {host}</small></p>
</body>
</html>
"""


class RedisError(Exception):
    """Redis is not there, or refuses."""


def address(name):
    """Where a service is; None if there is no such service."""
    if os.environ.get("GET_HOSTS_FROM", "dns") == "env":
        host = os.environ.get(name.upper().replace("-", "_") + "_SERVICE_HOST")
    else:
        host = name
    if host is None:
        return None
    try:
        return socket.getaddrinfo(host, REDIS_PORT, type=socket.SOCK_STREAM)[0][4]
    except OSError:
        return None


def redis(names, *command):
    """Runs one command on the first of the named servers that exists."""
    where = next(filter(None, map(address, names)), None)
    if where is None:
        raise RedisError("no service called " + ", ".join(names))
    request = b"*%d\r\n" % len(command)
    for word in command:
        word = word.encode()
        request += b"$%d\r\n%s\r\n" % (len(word), word)
    try:
        with socket.create_connection(where[:2], TIMEOUT_SECONDS) as connection:
            connection.sendall(request)
            with connection.makefile("rb") as stream:
                return reply(stream)
    except OSError as error:
        raise RedisError(f"{names[0]}: {error}") from error


def reply(stream):
    """Reads one answer of the Redis protocol."""
    line = stream.readline(MAX_REPLY_BYTES).rstrip(b"\r\n").decode()
    kind, rest = line[:1], line[1:]
    if kind == "-":
        raise RedisError(rest)
    if kind == "$":
        size = int(rest)
        if size > MAX_REPLY_BYTES:
            raise RedisError("the answer is too long")
        return None if size < 0 else stream.read(size + 2)[:-2].decode(errors="replace")
    if kind == "*":
        return [reply(stream) for _ in range(max(int(rest), 0))]
    if kind in "+:" and kind:
        return rest
    raise RedisError("the connection broke off")


def read(*command):
    """Reads from a follower, or from the leader where there are no followers."""
    return redis(FOLLOWERS + LEADERS, *command)


def messages():
    text = read("GET", "messages") or ""
    return [message for message in text.split(",") if message]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        parts = [urllib.parse.unquote(part) for part in url.path.split("/")[1:]]
        try:
            self.route(url.path, parts, query)
        except RedisError as error:
            self.answer(502, "text/plain", f"cannot reach redis: {error}\n")

    def route(self, path, parts, query):
        if path in ("/", "/index.html", "/index.php"):
            items = "\n".join(f"<li>{html.escape(message)}</li>" for message in messages())
            page = PAGE.format(messages=items, host=html.escape(socket.gethostname()))
            self.answer(200, "text/html; charset=utf-8", page)
        elif path == "/guestbook.php" and query.get("cmd") == "set":
            redis(LEADERS, "SET", query.get("key", "messages"), query.get("value", ""))
            self.answer_json({"message": "Updated"})
        elif path == "/guestbook.php":
            self.answer_json({"data": read("GET", query.get("key", "messages")) or ""})
        elif parts[0] == "lrange" and len(parts) == 2:
            self.answer_json(read("LRANGE", parts[1], "0", "-1"))
        elif parts[0] == "rpush" and len(parts) >= 3:
            redis(LEADERS, "RPUSH", parts[1], "/".join(parts[2:]))
            self.answer_json(redis(LEADERS, "LRANGE", parts[1], "0", "-1"))
        elif path == "/info":
            self.answer(200, "text/plain", redis(LEADERS, "INFO") or "")
        elif path == "/env":
            self.answer_json(dict(os.environ))
        elif path == "/healthz":
            self.answer(200, "text/plain", "ok\n")
        else:
            self.answer(404, "text/plain", "not found\n")

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        if length > MAX_BODY_BYTES:
            return self.answer(413, "text/plain", "too long\n")
        form = dict(urllib.parse.parse_qsl(self.rfile.read(length).decode(errors="replace")))
        # A comma would part the message in two.
        message = form.get("message", "").replace(",", " ").strip()
        try:
            if message:
                text = redis(LEADERS, "GET", "messages") or ""
                redis(LEADERS, "SET", "messages", f"{text},{message}" if text else message)
        except RedisError as error:
            return self.answer(502, "text/plain", f"cannot reach redis: {error}\n")
        self.answer(303, "text/plain", "", {"Location": "/"})

    def answer_json(self, value):
        self.answer(200, "application/json", json.dumps(value) + "\n")

    def answer(self, status, kind, text, headers=None):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, text, *values):
        print(f"{self.client_address[0]} {text % values}", flush=True)


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    port = int(os.environ.get("PORT", "80"))
    http.server.ThreadingHTTPServer.daemon_threads = True
    with http.server.ThreadingHTTPServer(("", port), Handler) as server:
        print(f"guestbook listens on port {port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
