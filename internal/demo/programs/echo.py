"""echo.py PORT: answers every line with itself, over IPv4 and IPv6."""
import socket
import socketserver
import sys


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        print("open", self.client_address[0], flush=True)
        for line in self.rfile:
            self.wfile.write(line)


class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


Server(("::", int(sys.argv[1])), Handler).serve_forever()
