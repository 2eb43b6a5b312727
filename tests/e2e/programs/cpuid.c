/*
 * What CPUID says about SGX, by the instruction itself, and that the rest of CPUID still makes sense. With "everywhere"
 * as argument also whether threads, a fork's child and what it executes are told the same.
 */
#include <cpuid.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static char told[1024];

/* What CPUID says, as text. */
static void ask(char *text)
{
	unsigned a, b, c, d;
	unsigned long long epc = 0;
	int sections = 0;

	__cpuid(0, a, b, c, d);
	text += sprintf(text, "leaf 0x12 is there: %d\n", a >= 0x12);
	__cpuid_count(7, 0, a, b, c, d);
	text += sprintf(text, "SGX %u, launch control %u\n", b >> 2 & 1, c >> 30 & 1);
	__cpuid_count(0x12, 0, a, b, c, d);
	text += sprintf(text, "SGX1 %u, largest enclave at least 64 GiB: %d\n", a & 1, (d >> 8 & 0xff) >= 36);
	__cpuid_count(0x12, 1, a, b, c, d);
	text += sprintf(text, "64-bit %u, x87 and SSE %u\n", a >> 2 & 1, c & 3);
	for (unsigned i = 2; i < 32; i++) {
		__cpuid_count(0x12, i, a, b, c, d);
		if ((a & 0xf) != 1)
			break;
		sections++;
		epc += ((unsigned long long)(d & 0xfffff) << 32) | (c & 0xfffff000);
	}
	text += sprintf(text, "EPC %llu in %d sections\n", epc, sections);
	__cpuid(1, a, b, c, d);
	sprintf(text, "SSE2 %u, XSAVE %u\n", d >> 26 & 1, c >> 26 & 1);
}

static int is_told(const char *before)
{
	char text[sizeof(told)];

	ask(text);
	return !strcmp(text, before);
}

static void *thread(void *same)
{
	*(int *)same = is_told(told);
	return NULL;
}

static int child(char *program)
{
	int status = 1;
	const pid_t pid = fork();

	if (!pid) {
		if (program)
			execl("/proc/self/exe", program, "again", told, NULL);
		_exit(!is_told(told));
	}
	return waitpid(pid, &status, 0) == pid && !status;
}

int main(int argc, char **argv)
{
	pthread_t other;
	int same = 0;

	if (argc > 2)
		return !is_told(argv[2]);
	ask(told);
	printf("%s", told);
	if (argc > 1) {
		pthread_create(&other, NULL, thread, &same);
		pthread_join(other, NULL);
		printf("the same in a thread %d", same);
		printf(", in a child %d", child(NULL));
		printf(", after an exec %d\n", child(argv[0]));
	}
	return 0;
}
