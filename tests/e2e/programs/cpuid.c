/*
 * What CPUID says about SGX, by the instruction itself, and that the rest of CPUID still makes sense. With "host" as
 * argument: only whether this kernel and processor can trap CPUID (exit status 0) or not (1).
 */
#include <cpuid.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	unsigned a, b, c, d;
	unsigned long long epc = 0;
	int sections = 0;

	if (argc > 1 && !strcmp(argv[1], "host"))
		return syscall(SYS_arch_prctl, 0x1012, 0) != 0;
	__cpuid(0, a, b, c, d);
	printf("leaf 0x12 is there: %d\n", a >= 0x12);
	__cpuid_count(7, 0, a, b, c, d);
	printf("SGX %u, launch control %u\n", b >> 2 & 1, c >> 30 & 1);
	__cpuid_count(0x12, 0, a, b, c, d);
	printf("SGX1 %u, largest enclave at least 64 GiB: %d\n", a & 1, (d >> 8 & 0xff) >= 36);
	__cpuid_count(0x12, 1, a, b, c, d);
	printf("64-bit %u, x87 and SSE %u\n", a >> 2 & 1, c & 3);
	for (unsigned i = 2; i < 32; i++) {
		__cpuid_count(0x12, i, a, b, c, d);
		if ((a & 0xf) != 1)
			break;
		sections++;
		epc += ((unsigned long long)(d & 0xfffff) << 32) | (c & 0xfffff000);
	}
	printf("EPC %llu in %d sections\n", epc, sections);
	__cpuid(1, a, b, c, d);
	printf("SSE2 %u, XSAVE %u\n", d >> 26 & 1, c >> 26 & 1);
	return 0;
}
