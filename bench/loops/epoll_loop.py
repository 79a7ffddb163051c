"""The broadcaster on plain epoll: one send for each client and append, and nothing else for either."""

from __future__ import annotations

import select
import socket

from bench.loops import common


class Client:
    """A connection, and the next byte that it is due."""

    __slots__ = ("at", "send", "socket")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.send = connection.send
        self.at = -1


class Broadcaster:
    """Everything is called from one loop over epoll's events."""

    def __init__(self, stream: common.Stream) -> None:
        self.stream = stream
        self.epoll = select.epoll()
        self.clients: dict[int, Client] = {}
        self.caught_up: dict[int, Client] = {}

    def accept(self, listener: socket.socket) -> None:
        """Take every connection that waits."""
        while True:
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                return
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.clients[connection.fileno()] = Client(connection)
            self.epoll.register(connection, select.EPOLLIN)

    def drop(self, descriptor: int) -> None:
        """Forget a client."""
        self.caught_up.pop(descriptor, None)
        self.clients.pop(descriptor).socket.close()

    def pump(self, descriptor: int, client: Client) -> None:
        """Send until it has all or its socket is full."""
        try:
            while piece := self.stream.behind(client.at):
                client.at += client.send(piece)
        except BlockingIOError:
            self.caught_up.pop(descriptor, None)
            self.epoll.modify(descriptor, select.EPOLLOUT)
        except OSError:
            self.drop(descriptor)
        else:
            self.caught_up[descriptor] = client
            self.epoll.modify(descriptor, 0)

    def fan_out(self) -> None:
        """Send what is new to everybody who has the rest."""
        before, fresh = self.stream.grown()
        late = []
        for descriptor, client in self.caught_up.items():
            try:
                sent = client.send(fresh)
            except OSError:
                sent = 0  # pump() finds out whether it is full or gone
            client.at = before + sent
            if sent != len(fresh):
                late.append((descriptor, client))
        for descriptor, client in late:
            self.pump(descriptor, client)

    def serve(self, descriptor: int, events: int) -> None:
        """A client has sent its header, can be written to again, or is gone."""
        client = self.clients[descriptor]
        if events & (select.EPOLLHUP | select.EPOLLERR):
            self.drop(descriptor)
            return
        if client.at < 0:
            try:
                client.at = self.stream.start(client.socket.recv(64))
            except (OSError, ValueError):
                self.drop(descriptor)
                return
        self.pump(descriptor, client)

    def run(self, listener: socket.socket) -> None:
        """Serve for ever."""
        watch = self.stream.watch.fileno()
        self.epoll.register(listener, select.EPOLLIN)
        self.epoll.register(watch, select.EPOLLIN)
        while True:
            for descriptor, events in self.epoll.poll():
                if descriptor == watch:
                    self.fan_out()
                elif descriptor == listener.fileno():
                    self.accept(listener)
                else:
                    self.serve(descriptor, events)


if __name__ == "__main__":
    file, sock, ready = common.begin()
    common.tell_ready(sock, ready)
    Broadcaster(file).run(sock)
