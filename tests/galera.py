"""A Galera cluster that the tests own: three MariaDB nodes, each in a network of its own, and HAProxy in front of them.

    cluster = Galera()
    cluster.start()                       returns when all nodes are in it
    cluster.create_database()             a URL through HAProxy, which shares out the connections
    cluster.nodes[0].kill() ...           what tests.servers.Server can do
    cluster.cut_off(node)                 from the other nodes; `whole=True`: from HAProxy as well
    cluster.join(node)                    puts it right, and returns when the cluster is whole again

A node has two cables, virtual ones: to its clients, who are the machine itself, and to a switch that only nodes are
connected to. Both networks belong to processes that work inside the cluster's directories, so they end with these, and
the watchdog of tests.servers sees to it. That takes root, iproute2 and util-linux.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess

from tests.servers import MariaDBServer, Server, database_name, find_program, missing
from tests.waiting import until

JOIN_SECONDS = 90
_numbers = itertools.count(1)
# Asked each second; whatever takes longer is as bad as a refusal.
CHECK = """#!/bin/sh
exec 2>/dev/null
said=$({client} --connect-timeout=2 -h "$3" -P "$4" -e "SHOW STATUS LIKE 'wsrep_local_state'")
test "$(echo "$said" | cut -f 2)" = 4
"""


class Network:
    """A network of its own, for as long as the process lives that holds it."""

    def __init__(self, directory):
        self.directory = directory
        self._holder = subprocess.Popen(
            ["unshare", "--net", "tail", "-f", "/dev/null"],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        ours = os.readlink("/proc/self/ns/net")
        path = "/proc/{}/ns/net".format(self._holder.pid)
        until(lambda: os.readlink(path) != ours, what="a network of its own")
        self.ip("link set lo up")

    @property
    def pid(self):
        return self._holder.pid

    def within(self, command):
        """The argv that runs *command* in this network."""
        return ["nsenter", "--net=/proc/{}/ns/net".format(self.pid), "--", *command]

    def ip(self, command):
        run(self.within(["ip", *command.split()]))

    def close(self):
        self._holder.kill()
        self._holder.wait()


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise AssertionError("{}: {}".format(" ".join(command), done.stderr.strip()))


class Node(MariaDBServer):
    """One node; `number` counts from 1."""

    name = "a node of Galera"

    def __init__(self, cluster, number):
        super().__init__()
        self.port = 3306
        self.number = number
        self.host = "10.{}.{}.2".format(cluster.subnet, number)
        self._cluster = cluster
        self._founds = number == 1
        self.network = None
        self.cable = "lp{}c{}".format(cluster.subnet, number)

    def client(self, database=None):
        command = super().client(database)
        command[command.index("-h") + 1] = self.host
        return [*command, "--connect-timeout=3"]

    def url(self, database, driver=None):
        return super().url(database, driver).replace("127.0.0.1", self.host)

    def answers(self):
        return self.status("wsrep_local_state_comment") == "Synced"

    def status(self, name):
        """What the node says of itself; "" if it does not answer."""
        asked = subprocess.run(
            self.client(), input="SHOW STATUS LIKE '{}'".format(name), capture_output=True, text=True
        )
        return asked.stdout.strip().rpartition("\t")[2]

    def _make_command(self):
        # Its clients come from elsewhere.
        with open(os.path.join(self.directory, "init.sql"), "w") as script:
            script.write("CREATE USER IF NOT EXISTS 'root'@'%';\n")
            script.write("GRANT ALL PRIVILEGES ON *.* TO 'root'@'%' WITH GRANT OPTION;\n")
        return super()._make_command()

    def connect(self):
        """Puts in the cables."""
        subnet, number = self._cluster.subnet, self.number
        self.network = Network(self.directory)
        run(
            "ip link add {} type veth peer name clients netns {}".format(self.cable, self.network.pid).split()
        )
        run("ip addr add 10.{}.{}.1/30 dev {}".format(subnet, number, self.cable).split())
        run("ip link set {} up".format(self.cable).split())
        self.network.ip("addr add {}/30 dev clients".format(self.host))
        self.network.ip("link set clients up")
        switch = self._cluster.switch
        switch.ip("link add node{} type veth peer name nodes netns {}".format(number, self.network.pid))
        switch.ip("link set node{} master switch".format(number))
        switch.ip("link set node{} up".format(number))
        self.network.ip("addr add {}/24 dev nodes".format(self._cluster.address(number)))
        self.network.ip("link set nodes up")

    def _serve_command(self):
        if self.network is None:
            self.connect()
        settings = {
            "init-file": os.path.join(self.directory, "init.sql"),
            "bind-address": "0.0.0.0",
            "wsrep-on": "ON",
            "wsrep-provider": find_program(
                "libgalera_smm.so", folders=["/usr/lib/galera", "/usr/lib*/galera*"]
            ),
            "wsrep-cluster-address": "gcomm://",
            "wsrep-node-address": self._cluster.address(self.number),
            "wsrep-node-name": "node{}".format(self.number),
            "wsrep-sst-method": "rsync",
            "wsrep-provider-options": "gcache.size=64M",
            "binlog-format": "ROW",
            "innodb-autoinc-lock-mode": 2,
        }
        if self._founds:
            self._founds = False
        else:
            del settings["init-file"]
            settings["wsrep-cluster-address"] += ",".join(map(self._cluster.address, (1, 2, 3)))
        return super()._serve_command() + ["--{}={}".format(*each) for each in settings.items()]

    def _as_user(self, command):
        command = super()._as_user(command)
        return command if self.network is None else self.network.within(command)

    def destroy(self):
        super().destroy()
        if self.network is not None:
            self.network.close()


class Balancer(Server):
    """HAProxy as shops have it before a cluster: each connection goes to a node that says that it is in the cluster."""

    name = "HAProxy"
    # Its checks run mariadb's client, which nobody may.
    users = ()

    def __init__(self, nodes):
        self._program = find_program("haproxy", folders=["/usr/sbin"])
        super().__init__()
        self._nodes = nodes

    def _make_command(self):
        check = os.path.join(self.directory, "check")
        client = self._nodes[0].client()
        with open(check, "w") as script:
            script.write(CHECK.format(client=" ".join(client[: client.index("-h")] + ["-u", "root"])))
        os.chmod(check, 0o755)
        lines = [
            "global",
            "external-check",
            "insecure-fork-wanted",
            "log stderr format raw local0",
            "defaults",
        ]
        lines += ["log global", "mode tcp", "option tcplog", "timeout connect 3s", "timeout client 1h"]
        lines += ["timeout server 1h", "listen cluster", "bind 127.0.0.1:{}".format(self.port)]
        lines += ["balance roundrobin", "option external-check", "external-check path /usr/bin:/bin"]
        lines += ["external-check command " + check]
        lines += ["default-server check inter 1s fall 2 rise 2 on-marked-down shutdown-sessions"]
        lines += ["server node{} {}:{}".format(each.number, each.host, each.port) for each in self._nodes]
        with open(os.path.join(self.directory, "haproxy.cfg"), "w") as configuration:
            configuration.write("\n".join(lines) + "\n")
        return ["true"]

    def url(self, database, driver=None):
        node = self._nodes[0]
        return node.url(database, driver).replace(
            "{}:{}".format(node.host, node.port), "127.0.0.1:{}".format(self.port)
        )

    def client(self, database=None):
        command = self._nodes[0].client(database)
        command[command.index("-h") + 1] = "127.0.0.1"
        command[command.index("-P") + 1] = str(self.port)
        return command

    def _serve_command(self):
        return [self._program, "-db", "-f", os.path.join(self.directory, "haproxy.cfg")]


class Galera:
    """The cluster."""

    def __init__(self):
        if os.geteuid() or not all(map(shutil.which, ("ip", "nsenter", "unshare", "rsync"))):
            missing("what a cluster's networks take: root, iproute2, util-linux, rsync")
        # Two clusters side by side do not share a network.
        self.subnet = 100 + (os.getpid() + 7 * next(_numbers)) % 100
        self.switch = None
        self.nodes = [Node(self, number) for number in (1, 2, 3)]
        self.balancer = Balancer(self.nodes)

    def address(self, number):
        """What the other nodes call node *number*."""
        return "10.{}.200.{}".format(self.subnet, number)

    def start(self):
        first = self.nodes[0]
        if self.switch is None:
            first._make_directory()
            self.switch = Network(first.directory)
            self.switch.ip("link add switch type bridge")
            self.switch.ip("link set switch up")
        for node in self.nodes:
            node.start()
        self.wait_until_whole()
        self.balancer.start()

    def wait_until_whole(self):
        """Returns when each node says that all are in the cluster; one that was stopped says so before it knows."""
        until(
            lambda: all(node.answers() and node.status("wsrep_cluster_size") == "3" for node in self.nodes),
            JOIN_SECONDS,
            "three nodes are in the cluster",
        )

    def create_database(self):
        """Makes an empty database; its URL goes through HAProxy."""
        name = database_name(self.nodes[0].create_database())
        for node in self.nodes:
            there = "SELECT 1 FROM information_schema.schemata WHERE schema_name = '{}'".format(name)
            until(lambda node=node, there=there: node.execute(there), what="the database is on each node")
        return self.balancer.url(name)

    def cut_off(self, node, *, whole=False):
        """Takes out the cable to the other nodes, and that to the clients as well."""
        self.switch.ip("link set node{} down".format(node.number))
        if whole:
            run("ip link set {} down".format(node.cable).split())

    def join(self, node):
        """Undoes whatever was done to *node*; returns when the cluster is whole again."""
        node.resume()
        self.switch.ip("link set node{} up".format(node.number))
        run("ip link set {} up".format(node.cable).split())
        node.start()
        self.wait_until_whole()

    def destroy(self):
        self.balancer.destroy()
        for node in self.nodes:
            node.destroy()
        if self.switch is not None:
            self.switch.close()
