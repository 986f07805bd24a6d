"""How the services that run on Java are started."""

import os
from collections.abc import Sequence
from pathlib import Path

from synapse_assets.compute.java import require_java

# `LineBufferedStream` is what Livy's batches print, which is in their own logs.
_LOG4J = """\
log4j.rootLogger=INFO,console
log4j.logger.org.apache.livy.utils.LineBufferedStream=WARN
log4j.appender.console=org.apache.log4j.ConsoleAppender
log4j.appender.console.target=System.err
log4j.appender.console.layout=org.apache.log4j.PatternLayout
log4j.appender.console.layout.ConversionPattern=%d{ISO8601} %p %c{2}: %m%n
"""


def java_command(
    main_class: str, *, jars: Sequence[Path], configuration: Path, memory: str
) -> list[str | Path]:
    """Return the command that runs a server on the loopback interface.

    Args:
        main_class: What is run.
        jars: What it is made of.
        configuration: The folder of its configuration, see `write_log4j`.
        memory: Its largest heap, as '256m'.

    Raises:
        ConfigurationError: Java is missing.
    """
    return [
        require_java() / "bin" / "java",
        *(f"-Xmx{memory}", "-XX:+UseSerialGC", "-Djava.net.preferIPv4Stack=true"),
        *("-classpath", os.pathsep.join(map(str, [configuration, *jars]))),
        main_class,
    ]


def write_log4j(configuration: Path) -> None:
    """Have what runs with this configuration log to its standard error."""
    configuration.mkdir(parents=True, exist_ok=True)
    (configuration / "log4j.properties").write_text(_LOG4J, encoding="utf-8")
