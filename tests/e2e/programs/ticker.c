/*
 * Makes a program be interrupted a thousand times a second from the moment at which it opens its first file. For
 * LD_PRELOAD: it stands before the C library's open and starts a timer once in each process (a child inherits none).
 * Calls that change many pages may be interrupted half way and then say how far they came; programs that expect no
 * signals do not look, so that is looked after here. As a program of its own it does nothing.
 */
#define _GNU_SOURCE
#include <asm/sgx.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

static pid_t started;

static void tick(int number)
{
	(void)number;
}

static void start(void)
{
	struct sigaction action = { .sa_handler = tick, .sa_flags = SA_RESTART };
	struct itimerval timer = { { 0, 1000 }, { 0, 1000 } };

	if (started == getpid())
		return;
	started = getpid();
	sigaction(SIGALRM, &action, 0);
	setitimer(ITIMER_REAL, &timer, 0);
}

int open(const char *path, int flags, ...)
{
	va_list arguments;

	va_start(arguments, flags);
	int mode = va_arg(arguments, int);

	va_end(arguments);
	start();
	return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

/* Where the counts of what was asked for and of what was done are; the offset always comes before the length. */
static int counts(unsigned long request, size_t *length, size_t *done)
{
	switch (request) {
	case SGX_IOC_ENCLAVE_ADD_PAGES:
		*length = offsetof(struct sgx_enclave_add_pages, length);
		*done = offsetof(struct sgx_enclave_add_pages, count);
		return 1;
	case SGX_IOC_ENCLAVE_RESTRICT_PERMISSIONS:
		*length = offsetof(struct sgx_enclave_restrict_permissions, length);
		*done = offsetof(struct sgx_enclave_restrict_permissions, count);
		return 1;
	case SGX_IOC_ENCLAVE_MODIFY_TYPES:
		*length = offsetof(struct sgx_enclave_modify_types, length);
		*done = offsetof(struct sgx_enclave_modify_types, count);
		return 1;
	case SGX_IOC_ENCLAVE_REMOVE_PAGES:
		*length = offsetof(struct sgx_enclave_remove_pages, length);
		*done = offsetof(struct sgx_enclave_remove_pages, count);
		return 1;
	}
	return 0;
}

int ioctl(int file, unsigned long request, ...)
{
	size_t length_at, done_at;
	va_list arguments;

	va_start(arguments, request);
	void *argument = va_arg(arguments, void *);

	va_end(arguments);
	if (!counts(request, &length_at, &done_at))
		return syscall(SYS_ioctl, file, request, argument);
	uint64_t words[8], total = 0, length;
	int result, own = errno;

	memcpy(words, argument, _IOC_SIZE(request));
	length = words[length_at / 8];
	do {
		result = syscall(SYS_ioctl, file, request, words);
		uint64_t part = words[done_at / 8];

		total += part;
		words[length_at / 8 - 1] += part;
		words[length_at / 8] -= part;
		if (request == SGX_IOC_ENCLAVE_ADD_PAGES)
			words[0] += part;
		words[done_at / 8] = 0;
	} while (total < length && (result == 0 || errno == EINTR || errno == EAGAIN));
	if (result == 0)
		errno = own;
	words[length_at / 8 - 1] -= total;
	words[length_at / 8] = length;
	if (request == SGX_IOC_ENCLAVE_ADD_PAGES)
		words[0] -= total;
	words[done_at / 8] = total;
	memcpy(argument, words, _IOC_SIZE(request));
	return result;
}

int main(void)
{
	return 0;
}
