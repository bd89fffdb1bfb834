#!/usr/bin/python3
"""A microblog that keeps its posts in MySQL and cannot do without.

DATABASE_URL names the database, e.g. mysql+pymysql://user:password@host[:port]/database. At the start the program
waits for the database and makes its table; after WAIT_SECONDS (30) without success it gives up with status 1.

    /            the page, newest post first; POST a form with `author` and `body` to add one
    /api/posts   the posts as JSON; POST {"author": ..., "body": ...} to add one
    /version     the program's version
    /healthz     ok while the database answers, otherwise status 503
"""

import html
import http.server
import json
import os
import signal
import socket
import sys
import time
import urllib.parse

import pymysql

VERSION = "1.0"
PORT = 5000
WAIT_SECONDS = float(os.environ.get("WAIT_SECONDS", "30"))
PAUSE_SECONDS = 1
CONNECT_TIMEOUT_SECONDS = 5
MAX_BODY_BYTES = 64 << 10
MAX_POSTS = 100

TABLE = """
CREATE TABLE IF NOT EXISTS post (
    id INT AUTO_INCREMENT PRIMARY KEY,
    author VARCHAR(64) NOT NULL,
    body VARCHAR(280) NOT NULL,
    created TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
) CHARACTER SET utf8mb4
"""

PAGE = """<!DOCTYPE html>
<html>
<head><meta charset="utf-8"><title>Microblog</title></head>
<body>
<h1>Microblog</h1>
<form method="post" action="/">
<input name="author" placeholder="Name">
<input name="body" placeholder="Say something" maxlength="280">
<button type="submit">Submit</button>
</form>
{posts}
<p><small>version {version}, served by {host}</small></p>
</body>
</html>
"""


def connect(url):
    parts = urllib.parse.urlsplit(url)
    if not parts.scheme.startswith("mysql"):
        sys.exit(f"DATABASE_URL: unknown kind of database {parts.scheme!r}")
    return pymysql.connect(
        host=parts.hostname,
        port=parts.port or 3306,
        user=urllib.parse.unquote(parts.username or ""),
        password=urllib.parse.unquote(parts.password or ""),
        database=parts.path.lstrip("/"),
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        read_timeout=CONNECT_TIMEOUT_SECONDS,
        autocommit=True,
        cursorclass=pymysql.cursors.DictCursor,
    )


def query(text, values=()):
    """Runs one statement on a connection of its own: a database that was restarted is found again."""
    with connect(os.environ["DATABASE_URL"]) as connection, connection.cursor() as cursor:
        cursor.execute(text, values)
        return cursor.fetchall()


def posts():
    rows = query("SELECT id, author, body, created FROM post ORDER BY id DESC LIMIT %s", (MAX_POSTS,))
    return [{**row, "created": row["created"].isoformat()} for row in rows]


def wait_for_database():
    give_up = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            query(TABLE)
            return
        except pymysql.MySQLError as error:
            if time.monotonic() >= give_up:
                sys.exit(f"no database: {error}")
            print(f"waiting for the database: {error}", flush=True)
            time.sleep(PAUSE_SECONDS)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = urllib.parse.urlsplit(self.path).path
        try:
            if path in ("/", "/index"):
                self.page()
            elif path == "/api/posts":
                self.answer(200, "application/json", json.dumps(posts()) + "\n")
            elif path == "/healthz":
                query("SELECT 1")
                self.answer(200, "text/plain", "ok\n")
            elif path == "/version":
                self.answer(200, "text/plain", VERSION + "\n")
            else:
                self.answer(404, "text/plain", "not found\n")
        except pymysql.MySQLError as error:
            self.answer(503, "text/plain", f"database: {error}\n")

    def page(self):
        items = "\n".join(
            f"<p><b>{html.escape(post['author'])}</b>: {html.escape(post['body'])}</p>" for post in posts()
        )
        host = html.escape(socket.gethostname())
        self.answer(200, "text/html; charset=utf-8", PAGE.format(posts=items, version=VERSION, host=host))

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        if length > MAX_BODY_BYTES:
            return self.answer(413, "text/plain", "too long\n")
        body = self.rfile.read(length).decode(errors="replace")
        try:
            is_json = "json" in self.headers.get("Content-Type", "")
            post = json.loads(body) if is_json else dict(urllib.parse.parse_qsl(body))
            author, text = str(post.get("author") or "somebody")[:64], str(post["body"])[:280]
        except (ValueError, KeyError, AttributeError):
            return self.answer(400, "text/plain", "a post needs a body\n")
        try:
            query("INSERT INTO post (author, body) VALUES (%s, %s)", (author, text))
        except pymysql.MySQLError as error:
            return self.answer(503, "text/plain", f"database: {error}\n")
        if is_json:
            return self.answer(201, "application/json", json.dumps({"author": author, "body": text}) + "\n")
        self.answer(303, "text/plain", "", {"Location": "/"})

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
    if not os.environ.get("DATABASE_URL"):
        sys.exit("DATABASE_URL is not set")
    wait_for_database()
    http.server.ThreadingHTTPServer.daemon_threads = True
    with http.server.ThreadingHTTPServer(("", PORT), Handler) as server:
        print(f"microblog {VERSION} listens on port {PORT}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
