/*
 * How an ordinary program enters an enclave: by the vDSO's function. Included by programs that do.
 */
#include <asm/sgx.h>
#include <elf.h>
#include <stdint.h>
#include <string.h>
#include <sys/auxv.h>

/*
 * Calls the vDSO function and keeps the registers that an enclave may change. The enclave finds the argument in
 * RDI and the magic number in RDX.
 */
int enter(void *argument, unsigned leaf, struct sgx_enclave_run *run, const void *function, uint64_t magic);
__asm__(".text\n"
	".type enter, @function\n"
	"enter:\n"
	"	push %rbp\n"
	"	mov %rsp, %rbp\n"
	"	push %rbx\n"
	"	push %r12\n"
	"	push %r13\n"
	"	push %r14\n"
	"	push %r15\n"
	"	push %rdx\n"
	"	mov %rcx, %rax\n"
	"	mov %esi, %ecx\n"
	"	mov %r8, %rdx\n"
	"	xor %esi, %esi\n"
	"	xor %r8d, %r8d\n"
	"	xor %r9d, %r9d\n"
	"	call *%rax\n"
	"	add $8, %rsp\n"
	"	pop %r15\n"
	"	pop %r14\n"
	"	pop %r13\n"
	"	pop %r12\n"
	"	pop %rbx\n"
	"	pop %rbp\n"
	"	ret\n"
	".size enter, . - enter\n");

/* The vDSO's function, by its dynamic symbol table. */
static const void *find_in_vdso(const char *name)
{
	const uint8_t *vdso = (const uint8_t *)getauxval(AT_SYSINFO_EHDR);
	const Elf64_Ehdr *header = (const void *)vdso;

	if (!vdso)
		return NULL;
	const Elf64_Phdr *program = (const void *)(vdso + header->e_phoff);
	const Elf64_Sym *symbols = NULL;
	const char *strings = NULL;
	const uint32_t *hash = NULL;

	for (int i = 0; i < header->e_phnum; i++) {
		if (program[i].p_type != PT_DYNAMIC)
			continue;
		for (const Elf64_Dyn *entry = (const void *)(vdso + program[i].p_offset); entry->d_tag; entry++) {
			if (entry->d_tag == DT_SYMTAB)
				symbols = (const void *)(vdso + entry->d_un.d_ptr);
			if (entry->d_tag == DT_STRTAB)
				strings = (const void *)(vdso + entry->d_un.d_ptr);
			if (entry->d_tag == DT_HASH)
				hash = (const void *)(vdso + entry->d_un.d_ptr);
		}
	}
	for (uint32_t i = 0; symbols && strings && hash && i < hash[1]; i++)
		if (symbols[i].st_shndx && !strcmp(strings + symbols[i].st_name, name))
			return vdso + symbols[i].st_value;
	return NULL;
}
