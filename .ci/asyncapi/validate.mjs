// Prints every problem the parser finds; an error (not a warning or a hint) fails the check.
import { readFile } from "node:fs/promises";
import { DiagnosticSeverity, Parser } from "@asyncapi/parser";

const file = process.argv[2];
const { document, diagnostics } = await new Parser().parse(await readFile(file, "utf8"), { source: file });
for (const { severity, path, message } of diagnostics) {
  if (severity <= DiagnosticSeverity.Warning) {
    console.error(`${severity === DiagnosticSeverity.Error ? "error" : "warning"}: ${path.join(".")}: ${message}`);
  }
}
const errors = diagnostics.filter(({ severity }) => severity === DiagnosticSeverity.Error).length;
if (errors > 0 || document === undefined) {
  process.exit(1);
}
console.log(`${file}: valid AsyncAPI ${document.version()}`);
