/*
 * Processes in worlds of their own: roots, namespaces, limits, sandboxes; and what is handed from one image or process
 * to the next. Modes are the names in the table at the end. What the host does not allow fails the same way wherever
 * it is tried, and is printed as it fails.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "modes.h"
#include "rights.h"

extern char **environ;
static char self_path[4096];

static const char *outcome(long result)
{
	return result < 0 ? strerrorname_np(errno) : "fine";
}

static void say_end(const char *what, pid_t child)
{
	int status = 0;

	if (waitpid(child, &status, 0) != child)
		printf("%s: waitpid %s\n", what, strerrorname_np(errno));
	else if (WIFSIGNALED(status))
		printf("%s: signal %d\n", what, WTERMSIG(status));
	else
		printf("%s: exit %d\n", what, WEXITSTATUS(status));
	fflush(stdout);
}

static void in_child(const char *what, void (*run)(void))
{
	fflush(stdout);
	pid_t child = fork();

	if (!child) {
		run();
		fflush(stdout);
		_exit(0);
	}
	say_end(what, child);
}

static void run_self(const char *mode)
{
	execl(self_path, self_path, mode, (char *)NULL);
	printf("exec: %s\n", strerrorname_np(errno));
	fflush(stdout);
	_exit(96);
}

/* What a program started by another does in these tests. */
static void hello(void)
{
	printf("hello, group leader %d, open beyond 2: ", getpgrp() == getpid());
	/* A runtime that needs descriptors of its own keeps them out of the way, below a low limit too. */
	for (int i = 3; i < 40; i++)
		if (fcntl(i, F_GETFD) >= 0)
			printf("%d ", i);
	printf("\n");
}

static void true_mode(void)
{
}

static void copy_self(const char *to)
{
	char buffer[65536];
	int from = open(self_path, O_RDONLY), file = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0755);
	ssize_t length;

	while ((length = read(from, buffer, sizeof(buffer))) > 0)
		if (write(file, buffer, length) != length)
			_exit(98);
	close(from);
	close(file);
}

static char root[] = "/tmp/e2e-root-XXXXXX";

/* Another root, with this program in it: it starts there if it is static. */
static void change_root(void)
{
	char to[64];

	if (!mkdtemp(root))
		_exit(98);
	snprintf(to, sizeof(to), "%s/program", root);
	copy_self(to);
	fflush(stdout);
	pid_t child = fork();

	if (!child) {
		printf("chroot: %s\n", outcome(chroot(root)));
		printf("chdir: %s\n", outcome(chdir("/")));
		fflush(stdout);
		execl("/program", "program", "hello", (char *)NULL);
		printf("exec: %s\n", strerrorname_np(errno));
		fflush(stdout);
		_exit(0);
	}
	say_end("in another root", child);
	unlink(to);
	rmdir(root);
}

static void unshare_user(void)
{
	printf("unshare: %s\n", outcome(unshare(CLONE_NEWUSER)));
	printf("no map, so nobody: %d\n", getuid() == 65534);
	fflush(stdout);
	run_self("hello");
}

static void unshare_mounts(void)
{
	printf("unshare: %s\n", outcome(unshare(CLONE_NEWUSER | CLONE_NEWNS)));
	printf("mount: %s\n", outcome(mount("none", "/mnt", "tmpfs", 0, NULL)));
	printf("a file in it: %s\n", outcome(open("/mnt/file", O_CREAT | O_WRONLY, 0600)));
	fflush(stdout);
	run_self("hello");
}

static void unshare_pids(void)
{
	printf("unshare: %s\n", outcome(unshare(CLONE_NEWUSER | CLONE_NEWPID)));
	fflush(stdout);
	pid_t child = fork();

	if (!child) {
		printf("number one: %d\n", getpid() == 1);
		fflush(stdout);
		child = fork();
		if (!child) {
			printf("number two: %d, parent %d\n", getpid(), getppid());
			fflush(stdout);
			run_self("true");
		}
		say_end("second", child);
		run_self("true");
	}
	say_end("first", child);
}

static void namespaces(void)
{
	in_child("user", unshare_user);
	in_child("mounts", unshare_mounts);
	in_child("pids", unshare_pids);
}

static int in_clone(void *unused)
{
	(void)unused;
	printf("number %d, parent %d\n", getpid(), getppid());
	fflush(stdout);
	run_self("true");
	return 0;
}

static void cloned(void)
{
	static char stack[262144] __attribute__((aligned(16)));
	pid_t child;

	fflush(stdout);
	child = clone(in_clone, stack + sizeof(stack), CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | SIGCHLD, NULL);
	if (child > 0)
		say_end("cloned", child);
	else
		printf("clone: %s\n", strerrorname_np(errno));
	fflush(stdout);
	child = clone(in_clone, stack + sizeof(stack),
		      CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET | SIGCHLD, NULL);
	if (child > 0)
		say_end("cloned", child);
	else
		printf("clone: %s\n", strerrorname_np(errno));
}

static void *in_thread(void *unused)
{
	return unused;
}

static void limit_files(void)
{
	struct rlimit few = { 64, 64 };
	pthread_t thread;
	int files = 0, last = -1;

	printf("limit: %s\n", outcome(setrlimit(RLIMIT_NOFILE, &few)));
	printf("thread: %d\n", pthread_create(&thread, NULL, in_thread, NULL));
	pthread_join(thread, NULL);
	for (int file; (file = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0; files++)
		last = file;
	printf("%d files, the last %d, then %s\n", files, last, strerrorname_np(errno));
	in_child("child", hello);
	printf("dup: %s", outcome(dup(0)));
	printf(", dup2 to the limit: %s", outcome(dup2(0, 64)));
	printf(", far beyond: %s", outcome(dup2(0, 100000)));
	printf(", close far beyond: %s\n", outcome(close(100000)));
	/* Whoever starts the next program may need one or two for a moment. */
	for (int i = 0; i < 4; i++)
		close(last - i);
	fflush(stdout);
	run_self("hello");
}

static void close_all(void)
{
	for (int i = 0; i < 20; i++)
		(void)!dup(0);
	closefrom(3);
	fflush(stdout);
	hello();
	printf("range %s", outcome(close_range(3, ~0U, 0)));
	printf(", close on exec %s", outcome(close_range(10, 20, CLOSE_RANGE_CLOEXEC)));
	printf(", unshared %s", outcome(close_range(3, ~0U, CLOSE_RANGE_UNSHARE)));
	printf(", backwards %s\n", outcome(close_range(5, 3, 0)));
	for (int i = 3; i < 70000; i++)
		close(i);
	fflush(stdout);
	run_self("hello");
}

static int install_filter(struct sock_filter *code, unsigned short length)
{
	struct sock_fprog program = { length, code };

	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program);
}

#define LOAD_NUMBER BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))
#define REFUSE(number, error) \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (error))
#define ALLOW_REST BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

/* Refuses calls that a runtime of somebody else's may want. */
static void sandbox(void)
{
	static struct sock_filter code[] = {
		LOAD_NUMBER,
		REFUSE(SYS_socket, EACCES),
		REFUSE(SYS_socketpair, EACCES),
		REFUSE(SYS_prctl, EPERM),
		REFUSE(SYS_sched_yield, ENOSYS),
		REFUSE(SYS_openat, EXDEV),
		REFUSE(SYS_fork, EXFULL),
		REFUSE(SYS_clone3, ENOSYS),
		ALLOW_REST,
	};
	pthread_t thread;

	printf("filter %d\n", install_filter(code, sizeof(code) / sizeof(*code)));
	printf("socket %s", outcome(socket(AF_UNIX, SOCK_STREAM, 0)));
	printf(", prctl %s", outcome(prctl(PR_GET_DUMPABLE)));
	printf(", yield %s", outcome(sched_yield()));
	printf(", open %s", outcome(open("/dev/null", O_RDONLY)));
	printf(", fork %s\n", outcome(syscall(SYS_fork)));
	printf("thread %d\n", pthread_create(&thread, NULL, in_thread, NULL));
	pthread_join(thread, NULL);
	in_child("child", true_mode);
}

static void strict(void)
{
	static struct sock_filter code[] = {
		LOAD_NUMBER,
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 3, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rt_sigreturn, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		ALLOW_REST,
	};

	install_filter(code, sizeof(code) / sizeof(*code));
	(void)!write(1, "a list of three\n", 16);
	getppid();
}

static void log_only(void)
{
	static struct sock_filter code[] = { LOAD_NUMBER, ALLOW_REST };

	for (int i = 0; i < 10; i++)
		printf("%d", install_filter(code, 2));
	printf("\n");
	fflush(stdout);
	run_self("hello");
}

static void filter_errors(void)
{
	static struct sock_filter bad[] = { BPF_STMT(0xffff, 0) };
	struct sock_fprog program = { 1, bad }, none = { 0, bad }, nowhere = { 1, (void *)8 };

	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	printf("bad %s", outcome(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)));
	printf(", empty %s", outcome(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &none)));
	printf(", nowhere %s", outcome(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &nowhere)));
	printf(", no program %s", outcome(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, 8)));
	printf(", mode %s", outcome(prctl(PR_SET_SECCOMP, 9, 0)));
	printf(", available %s", outcome(syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &(uint32_t){ SECCOMP_RET_TRAP })));
	printf(", operation %s\n", outcome(syscall(SYS_seccomp, 99, 0, NULL)));
}

static void filters(void)
{
	in_child("sandbox", sandbox);
	in_child("strict", strict);
	in_child("ten that allow", log_only);
	in_child("errors", filter_errors);
}

static void rights(void)
{
	char text[16] = "";
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_DGRAM, 0, pair))
		_exit(98);
	fflush(stdout);
	pid_t child = fork();

	if (!child) {
		int file = memfd_create("sent", 0);

		(void)!write(file, "across", 6);
		send_file(pair[1], file);
		_exit(0);
	}
	int file = receive_file(pair[0]);

	printf("received %d, content %zd", file >= 0, pread(file, text, sizeof(text) - 1, 0));
	printf(" %s\n", text);
	say_end("sender", child);
}

static void script(const char *path, const char *text)
{
	int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0755);

	(void)!write(file, text, strlen(text));
	close(file);
}

static void scripts(void)
{
	char where[] = "/tmp/e2e-script-XXXXXX", path[64], nested[64], text[4300];

	if (!mkdtemp(where))
		_exit(98);
	snprintf(path, sizeof(path), "%s/one", where);
	snprintf(nested, sizeof(nested), "%s/two", where);
	script(path, "#!/bin/sh -e\necho \"$# $1\"\nexit 9\n");
	snprintf(text, sizeof(text), "#!%s with-argument\n", path);
	script(nested, text);
	fflush(stdout);
	for (int way = 0; way < 6; way++) {
		pid_t child = fork();

		if (!child) {
			char *arguments[] = { "name", "given", NULL };
			int file;

			switch (way) {
			case 0: execv(path, arguments); break;
			case 1: execv(nested, arguments); break;
			case 2:
				file = open(path, O_RDONLY);
				fexecve(file, arguments, environ);
				break;
			case 3:
				script(path, "#!/nonexistent/interpreter\n");
				execv(path, arguments);
				break;
			case 4:
				script(path, "echo no first line\n");
				execv(path, arguments);
				break;
			default:
				if (chmod(path, 0644))
					_exit(98);
				execv(path, arguments);
			}
			printf("exec: %s\n", strerrorname_np(errno));
			fflush(stdout);
			_exit(96);
		}
		say_end("script", child);
	}
	unlink(path);
	unlink(nested);
	rmdir(where);
}

/* What an exec keeps, and what it resets. */
static void kept(void)
{
	struct itimerval timer = { .it_value = { .tv_sec = 1000 } };
	sigset_t set;

	umask(027);
	if (chdir("/tmp"))
		_exit(98);
	setitimer(ITIMER_REAL, &timer, NULL);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGRTMIN);
	sigaddset(&set, SIGTRAP);
	sigprocmask(SIG_SETMASK, &set, NULL);
	raise(SIGUSR1);
	sigqueue(getpid(), SIGRTMIN, (union sigval){ .sival_int = 5 });
	signal(SIGHUP, SIG_IGN);
	signal(SIGBUS, SIG_IGN);
	nice(3);
	prctl(PR_SET_NAME, "renamed");
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	run_self("show");
}

static void show(void)
{
	struct itimerval timer;
	struct sigaction now;
	char name[16], where[64];
	siginfo_t info;
	sigset_t set;
	int death = 0;

	getitimer(ITIMER_REAL, &timer);
	prctl(PR_GET_NAME, name);
	prctl(PR_GET_PDEATHSIG, &death);
	printf("mask %o, directory %s, timer %d, nice %d, name kept %d, death signal %d\n", umask(0),
	       getcwd(where, sizeof(where)), timer.it_value.tv_sec > 900, getpriority(PRIO_PROCESS, 0),
	       !strcmp(name, "renamed"), death);
	sigprocmask(SIG_BLOCK, NULL, &set);
	for (int i = 1; i < 65; i++)
		if (sigismember(&set, i) == 1)
			printf("blocked %d\n", i);
	sigpending(&set);
	for (int i = 1; i < 65; i++)
		if (sigismember(&set, i) == 1)
			printf("pending %d\n", i);
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN);
	printf("waited %d", sigwaitinfo(&set, &info) == SIGRTMIN);
	printf(", value %d\n", info.si_value.sival_int);
	for (int i = 1; i < 32; i++)
		if (!sigaction(i, NULL, &now) && now.sa_handler == SIG_IGN)
			printf("ignored %d\n", i);
	stack_t stack;

	sigaltstack(NULL, &stack);
	printf("stack %#x\n", stack.ss_flags);
}

static void spawned(void)
{
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t how;
	sigset_t set, defaults;
	pid_t child;
	char *arguments[] = { "worlds", "signals", NULL }, *greeting[] = { "worlds", "hello", NULL };

	signal(SIGSEGV, SIG_IGN);
	signal(SIGUSR1, SIG_IGN);
	signal(SIGUSR2, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGILL);
	sigaddset(&set, SIGTERM);
	sigemptyset(&defaults);
	sigaddset(&defaults, SIGUSR2);
	fflush(stdout);
	posix_spawnattr_init(&how);
	posix_spawnattr_setsigmask(&how, &set);
	posix_spawnattr_setsigdefault(&how, &defaults);
	posix_spawnattr_setflags(&how, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
	int error = posix_spawn(&child, self_path, NULL, &how, arguments, environ);

	say_end("spawned", child);
	printf("error %d\n", error);
	fflush(stdout);
	posix_spawnattr_setflags(&how, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_RESETIDS);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 7, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_addclosefrom_np(&actions, 9);
	error = posix_spawn(&child, self_path, &actions, &how, greeting, environ);
	say_end("spawned", child);
	printf("error %d\n", error);
	printf("missing %d\n", posix_spawn(&child, "/nonexistent/program", NULL, NULL, greeting, environ) == ENOENT);
}

static void show_signals(void)
{
	struct sigaction now;
	sigset_t set;

	sigprocmask(SIG_BLOCK, NULL, &set);
	for (int i = 1; i < 32; i++) {
		sigaction(i, NULL, &now);
		if (sigismember(&set, i) || now.sa_handler != SIG_DFL)
			printf("%d: blocked %d, ignored %d\n", i, sigismember(&set, i), now.sa_handler == SIG_IGN);
	}
}

static void descriptors(void)
{
	struct clone_args {
		uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
	} how = { .flags = 0x1000, .exit_signal = SIGCHLD };
	int pidfd = -1;
	siginfo_t info = { 0 };

	how.pidfd = (uintptr_t)&pidfd;
	fflush(stdout);
	long child = syscall(SYS_clone3, &how, sizeof(how));

	if (!child) {
		for (;;)
			pause();
	}
	printf("clone3 %s, descriptor %d\n", outcome(child), pidfd >= 0);
	struct pollfd ready = { pidfd, POLLIN, 0 };

	printf("poll %d", poll(&ready, 1, 0));
	printf(", signal %s", outcome(syscall(SYS_pidfd_send_signal, pidfd, SIGTERM, NULL, 0)));
	printf(", poll %d", poll(&ready, 1, 20000));
	printf(", wait %s", outcome(waitid(P_PIDFD, pidfd, &info, WEXITED)));
	printf(", killed %d by %d\n", info.si_code == CLD_KILLED, info.si_status);
	how.flags = 1;
	printf("bad flags %s", outcome(syscall(SYS_clone3, &how, sizeof(how))));
	printf(", too small %s", outcome(syscall(SYS_clone3, &how, 8)));
	printf(", too large %s", outcome(syscall(SYS_clone3, &how, 100000)));
	printf(", from nowhere %s\n", outcome(syscall(SYS_clone3, (void *)8, sizeof(how))));
}

static void daemonize(void)
{
	int ends[2];
	char text[128] = "";

	if (pipe(ends))
		_exit(98);
	fflush(stdout);
	pid_t child = fork();

	if (!child) {
		setsid();
		signal(SIGHUP, SIG_IGN);
		if (fork())
			_exit(0);
		if (chdir("/"))
			_exit(98);
		umask(0);
		dup2(ends[1], 100);
		closefrom(101);
		for (int i = 0; i < 100; i++)
			close(i);
		(void)!open("/dev/null", O_RDWR);
		(void)!dup(0);
		(void)!dup(0);
		dprintf(100, "daemon %d", getsid(0) != getpid());
		dup2(100, 1);
		run_self("hello");
	}
	close(ends[1]);
	say_end("first", child);
	for (size_t have = 0; have < sizeof(text) - 1;) {
		ssize_t length = read(ends[0], text + have, sizeof(text) - 1 - have);

		if (length <= 0)
			break;
		have += length;
	}
	printf("%s", text);
}

static void races(void)
{
	int right = 0, status;

	fflush(stdout);
	for (int i = 0; i < 30; i++)
		if (!fork())
			run_self(i % 3 ? "true" : "fails");
	while (wait(&status) > 0)
		right += WIFEXITED(status) && WEXITSTATUS(status) == 0;
	printf("%d of 30 succeeded\n", right);
}

static void fails(void)
{
	exit(1);
}

static void subreaper(void)
{
	int ends[2], status;
	char byte;

	if (pipe(ends))
		_exit(98);
	printf("subreaper %s\n", outcome(prctl(PR_SET_CHILD_SUBREAPER, 1)));
	fflush(stdout);
	pid_t child = fork();

	if (!child) {
		if (!fork()) {
			(void)!read(ends[0], &byte, 1);
			_exit(44);
		}
		_exit(0);
	}
	say_end("child", child);
	(void)!write(ends[1], "x", 1);
	printf("adopted %d", wait(&status) > 0);
	printf(", exit %d\n", WEXITSTATUS(status));
}

static void huge(void)
{
	static char big[200000];
	static char *arguments[4000];

	memset(big, 'a', sizeof(big) - 1);
	fflush(stdout);
	pid_t child = fork();

	if (!child) {
		execl(self_path, self_path, "true", big, (char *)NULL);
		printf("one long argument: %s\n", strerrorname_np(errno));
		fflush(stdout);
		big[100000] = 0;
		arguments[0] = self_path;
		arguments[1] = "count";
		for (int i = 2; i < 15; i++)
			arguments[i] = big;
		execv(self_path, arguments);
		_exit(96);
	}
	say_end("thirteen long arguments", child);
}

static int nr_arguments;

static void count_arguments(void)
{
	exit(nr_arguments);
}

static void ids(void)
{
	printf("set to nobody %s", outcome(setresgid(65534, 65534, 65534)));
	printf(", %s\n", outcome(setresuid(65534, 65534, 65534)));
	printf("dumpable %d\n", prctl(PR_GET_DUMPABLE));
	fflush(stdout);
	run_self("hello");
}

static void identities(void)
{
	in_child("changed", ids);
}

static void dumpable(void)
{
	printf("%d", prctl(PR_GET_DUMPABLE));
	printf(", set %s", outcome(prctl(PR_SET_DUMPABLE, 0)));
	printf(", %d\n", prctl(PR_GET_DUMPABLE));
	fflush(stdout);
	in_child("child", true_mode);
	run_self("hello");
}

int main(int argc, char **argv)
{
	static const struct mode modes[] = {
		{ "chroot", change_root }, { "namespaces", namespaces }, { "cloned", cloned },
		{ "limit-files", limit_files }, { "close-all", close_all }, { "filters", filters },
		{ "rights", rights }, { "scripts", scripts }, { "kept", kept }, { "spawned", spawned },
		{ "pidfd", descriptors }, { "daemonize", daemonize }, { "races", races }, { "subreaper", subreaper },
		{ "huge", huge }, { "identities", identities }, { "dumpable", dumpable },
	};
	/* What the others start. */
	static const struct mode parts[] = {
		{ "hello", hello }, { "true", true_mode }, { "show", show }, { "signals", show_signals },
		{ "fails", fails }, { "count", count_arguments },
	};

	setvbuf(stdout, NULL, _IOLBF, 0);
	nr_arguments = argc;
	if (readlink("/proc/self/exe", self_path, sizeof(self_path) - 1) < 0)
		strncpy(self_path, argv[0], sizeof(self_path) - 1);
	if (find_mode(parts, COUNT(parts), argv[1]))
		return run_mode(parts, COUNT(parts), argv[1]);
	return run_mode(modes, COUNT(modes), argv[1]);
}
