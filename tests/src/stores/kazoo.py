"""Does what it is told on standard input, one JSON line for another: python3 kazoo.py HOST:PORT [USER:PASSWORD]"""

import json
import sys

# The folder of this file comes first, and this file has the library's own name.
sys.path[0] = "/opt/python"

from kazoo.client import KazooClient
from kazoo.exceptions import NodeExistsError, NoNodeError
from kazoo.security import make_digest_acl

hosts = sys.argv[1]
login = sys.argv[2] if len(sys.argv) > 2 else None
acl = [make_digest_acl(*login.split(":"), all=True)] if login else None


def connect(timeout):
    auth = [("digest", login)] if login else None
    client = KazooClient(hosts, timeout=timeout, auth_data=auth, default_acl=acl)
    client.start(timeout=20)
    return client


client = connect(30)
owners = {}

for line in sys.stdin:
    command = json.loads(line)
    path, value = command.get("path"), bytes(command.get("value", []))
    answer = ""
    try:
        if command["do"] == "put":
            try:
                client.set(path, value)
            except NoNodeError:
                client.create(path, value, makepath=True)
        elif command["do"] == "delete":
            client.delete(path)
        elif command["do"] == "put_owned":
            owner = connect(2)
            try:
                owner.create(path, value, ephemeral=True, makepath=True)
            except NodeExistsError:
                owner.delete(path)
                owner.create(path, value, ephemeral=True, makepath=True)
            answer = str(owner.client_id[0])
            owners[answer] = owner
        elif command["do"] == "end":
            owners.pop(command["owner"]).stop()
        print(json.dumps({"ok": answer}))
    except Exception as error:
        print(json.dumps({"error": repr(error)}))
