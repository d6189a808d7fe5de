"""talk.py HOST PORT: keeps one connection to an echo server open and says on each line how far it got."""
import signal
import socket
import sys
import time

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20)
lines = sock.makefile("rb")
print("open", flush=True)
tick = 0
try:
    while True:
        sent = b"tick %d\n" % tick
        sock.sendall(sent)
        got = lines.readline()
        if got != sent:
            raise ConnectionError("closed by the other side" if not got else "got %r" % got)
        print("tick", tick, flush=True)
        tick += 1
        time.sleep(0.1)
except OSError as e:
    print("broken", e, flush=True)
    sys.exit(1)
