"""A door in front of a PostgreSQL server that loses the answers to some COMMITs, after the server has committed."""

import contextlib
import selectors
import socket
import threading


class Door:
    """Passes on what it is sent; after some commits it waits for the server's answer, keeps it, and hangs up.

    Args:
        folder: where its socket is to be.
        server: folder of the server's own socket.
        loses: called at each COMMIT; whether its answer is lost.
        refuses: called then; how many callers after it are sent away.

    Attributes:
        lost: answers that nobody heard.
    """

    def __init__(self, folder, server, loses, refuses):
        self._server, self._loses, self._refuses = f"{server}/.s.PGSQL.5432", loses, refuses
        self.lost = self._refusing = 0
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(f"{folder}/.s.PGSQL.5432")
        self._listening.listen()
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def close(self):
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def _accept(self):
        callers = []
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                if self._refusing > 0:
                    self._refusing -= 1
                    client.close()
                    continue
                callers.append(threading.Thread(target=self._serve, args=(client,)))
                callers[-1].start()
        for caller in callers:
            caller.join()

    def _serve(self, client):
        with client, socket.socket(socket.AF_UNIX) as server, selectors.DefaultSelector() as ready:
            server.connect(self._server)
            ready.register(client, selectors.EVENT_READ, server)
            ready.register(server, selectors.EVENT_READ, client)
            with contextlib.suppress(OSError):
                while all(self._pass_on(key.fileobj, key.data, server) for key, _ in ready.select()):
                    pass

    def _pass_on(self, one, other, server):
        """Pass on what one side says to the other, and return whether they go on talking."""
        said = one.recv(1 << 16)
        loses = one is not server and said.startswith(b"Q") and said.endswith(b"COMMIT\0") and self._loses()
        other.sendall(said)
        if loses:
            self.lost += bool(server.recv(1 << 16))
            self._refusing = self._refuses()
        return bool(said) and not loses
