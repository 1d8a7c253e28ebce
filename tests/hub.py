"""A stand-in for the Hugging Face Hub: makes repositories, takes commits, gives files, all from memory."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_stand_in"


class Hub(ThreadingHTTPServer):
    """``repos``: files by name, of every repository; ``settings``: what each was made with."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repos, self.settings, self.asked = {}, {}, []
        self.address = f"http://127.0.0.1:{self.server_port}"

    def commit_of(self, name):
        listed = sorted((path, hashlib.sha256(content).hexdigest()) for path, content in self.repos[name].items())
        return hashlib.sha1(json.dumps(listed).encode()).hexdigest()


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path, hub = self.path.partition("?")[0], self.server
        hub.asked.append(path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid credentials"}, 401)
        if path == "/api/repos/create":
            told = json.loads(body)
            name = f"{told['organization']}/{told['name']}" if told.get("organization") else told["name"]
            address = {"url": f"{hub.address}/{name}", "name": name}
            if name in hub.repos:
                return self.answer({"error": "You already created this model repo"} | address, 409)
            hub.repos[name], hub.settings[name] = {}, told
            return self.answer(address)
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        name = "/".join(path.split("/")[3:5])
        if name not in hub.repos:
            return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        if "/preupload/" in path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            return self.answer({"files": [file | {"shouldIgnore": False} for file in files]})
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.repos[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            commit = hub.commit_of(name)
            return self.answer(
                {"success": True, "commitOid": commit, "commitUrl": f"{hub.address}/{name}/commit/{commit}"}
            )
        return self.answer({"success": True})

    def do_GET(self):
        path, hub = self.path.partition("?")[0].strip("/"), self.server
        parts = path.split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if name not in hub.repos:
            return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        files, commit = hub.repos[name], hub.commit_of(name)
        if parts[0] == "api" and "tree" in parts:
            tree = [
                {"type": "file", "path": file, "size": len(files[file]), "oid": hashlib.sha1(files[file]).hexdigest()}
                for file in files
            ]
            return self.answer(tree)
        if parts[0] == "api":
            siblings = [{"rfilename": file} for file in files]
            return self.answer(
                {"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": [], "private": False}
            )
        content = files.get("/".join(parts[4:]))
        if content is None:
            return self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        return self.answer(content, X_Repo_Commit=commit, ETag=f'"{hashlib.sha256(content).hexdigest()}"')

    do_HEAD = do_GET


@contextmanager
def standing_in():
    """The stand-in, while the block runs."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
