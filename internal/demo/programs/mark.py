"""mark.py HOST PORT MARKER MARK...: one HTTP request per SO_MARK; prints the mark and the status line."""
import socket
import struct
import sys

SO_MARK = 36
host, port, marker = sys.argv[1], int(sys.argv[2]), sys.argv[3]
for mark in sys.argv[4:]:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.settimeout(5)
    sock.setsockopt(socket.SOL_SOCKET, SO_MARK, struct.pack("=I", int(mark, 0)))
    try:
        sock.connect((host, port))
        sock.sendall(b"GET / HTTP/1.1\r\nHost: server\r\nX-Marker: %s\r\nConnection: close\r\n\r\n" % marker.encode())
        print(mark, sock.makefile("rb").readline().decode().strip() or "closed", flush=True)
    except OSError as e:
        print(mark, e, flush=True)
    sock.close()
