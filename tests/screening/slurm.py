"""A SLURM of one node, this machine, from the programs of Debian's slurm-wlm and munge."""

import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import psutil

PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'srun', 'scontrol', 'squeue')
# Seconds that anything may take: the machine may be busy.
PATIENCE = 250
# Programs of system administrators, which the path of a user may lack.
PLACES = os.pathsep.join((os.environ.get('PATH', os.defpath), '/usr/sbin', '/sbin'))

# A job that is queued again waits for as long as a credential is valid: 5 s here.
CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4096 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP
"""


def missing():
    """The programs of SLURM that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=PLACES) is None]


class Slurm:
    """Daemons of SLURM in a folder of their own; a context manager.

    Parameters
    ----------
    folder : Path
        Empty; for configuration, key, state and logs.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.env = {'PATH': PLACES, 'SLURM_CONF': str(folder / 'slurm.conf')}
        self._daemons = []

    def __enter__(self):
        key = self.folder / 'munge.key'
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        for name in ('state', 'spool'):
            (self.folder / name).mkdir()
        config = CONFIG.format(
            folder=self.folder,
            host=socket.gethostname().partition('.')[0],
            user=psutil.Process().username(),
            ports=free_ports(2),
        )
        (self.folder / 'slurm.conf').write_text(config)
        names = ('socket', 'key', 'log', 'pid', 'seed')
        socket_, key, log, pid, seed = (self.folder / f'munge.{name}' for name in names)
        try:
            # munged does not like folders of tests, which others may enter: --force.
            self._begin(
                'munged', '--foreground', '--force', f'--socket={socket_}',
                f'--key-file={key}', f'--log-file={log}', f'--pid-file={pid}',
                f'--seed-file={seed}',
            )  # fmt: skip
            wait_until(socket_.exists, self._logs)
            self._begin('slurmctld', '-D')
            self._begin('slurmd', '-D')
            wait_until(lambda: 'idle' in self._sinfo(), self._logs)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        subprocess.run(
            ['scancel', '--user', psutil.Process().username()],
            env=os.environ | self.env,
            check=False,
        )
        end = time.monotonic() + 40
        while time.monotonic() < end and self.run('squeue', '--noheader', check=False):
            time.sleep(0.5)
        for daemon in self._daemons[::-1]:
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _begin(self, *command):
        with (self.folder / f'{command[0]}.out').open('w') as log:
            self._daemons.append(
                subprocess.Popen(
                    command, env=os.environ | self.env, stdout=log, stderr=subprocess.STDOUT
                )
            )

    def _sinfo(self):
        return self.run('sinfo', '--noheader', '--format=%T', check=False)

    def _logs(self):
        return '\n'.join(path.read_text() for path in self.folder.glob('*.out'))

    def run(self, *command, env=None, check=True):
        """What a command of SLURM prints."""
        done = subprocess.run(
            [str(word) for word in command],
            env=os.environ | self.env | (env or {}),
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, (command, done.stderr)
        return done.stdout.strip()

    def job(self, job):
        """Facts of a job as ``scontrol show job`` prints them, such as JobState."""
        line = self.run('scontrol', '--oneliner', 'show', 'job', job)
        return dict(re.findall(r'(\w+)=(\S+)', line))


def free_ports(count):
    """Ports of this machine that nothing listens on."""
    sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_until(is_so, explain=lambda: ''):
    """Wait for something, long; ``explain`` tells why it may have failed."""
    end = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < end, explain()
        time.sleep(0.2)
