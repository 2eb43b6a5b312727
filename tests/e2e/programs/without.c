/*
 * Runs a program on a kernel that lacks something: `without userfaultfd|cpuid-faulting PROGRAM [ARGUMENT...]`. A seccomp
 * filter answers as such a kernel does.
 */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { ARCH_SET_CPUID = 0x1012 };

#define FAIL(error) BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (error))
#define ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
/* Goes on if it is this one, else skips so many. */
#define ONLY(value, skip) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, skip)

static struct sock_filter userfaultfd[] = {
	LOAD(nr), ONLY(SYS_userfaultfd, 1), FAIL(ENOSYS), ALLOW,
};

static struct sock_filter cpuid_faulting[] = {
	LOAD(nr), ONLY(SYS_arch_prctl, 3), LOAD(args[0]), ONLY(ARCH_SET_CPUID, 1), FAIL(ENODEV), ALLOW,
};

static int install(struct sock_filter *filter, unsigned short length)
{
	const struct sock_fprog program = { length, filter };

	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

int main(int argc, char **argv)
{
	int failed = 1;

	if (argc > 2 && !strcmp(argv[1], "userfaultfd"))
		failed = install(userfaultfd, sizeof(userfaultfd) / sizeof(*userfaultfd));
	else if (argc > 2 && !strcmp(argv[1], "cpuid-faulting"))
		failed = install(cpuid_faulting, sizeof(cpuid_faulting) / sizeof(*cpuid_faulting));
	if (!failed)
		execv(argv[2], argv + 2);
	perror("without");
	return 99;
}
